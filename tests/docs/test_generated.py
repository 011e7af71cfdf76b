"""The pages that are generated are fresh, and hold all that there is."""

from __future__ import annotations

import re

import pytest
from generation.commands import help_of
from generation.pages import DOCS, pages
from generation.pictures import PICTURES
from generation.site import restructured

import morphing_trainer
from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.cli.groups import ALL, NOT_IN_HELP
from morphing_trainer.cli.morph import COMMANDS
from morphing_trainer.documents import read_text
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import NAMES, OPERATIONS
from morphing_trainer.planning import play
from morphing_trainer.plans.fields import Part, StageFields
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import KINDS
from tests.support import tiny_config, tiny_model

PAGES = pages()


@pytest.fixture(scope="module")
def text() -> str:
    return (DOCS / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_fresh(name: str) -> None:
    assert PAGES[name] == (DOCS / name).read_text(encoding="utf-8"), f"{name} is stale; run: python docs/generate.py"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_fresh(name: str) -> None:
    assert PICTURES[name]() == (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")


def test_every_operation_option_and_condition_is_there(text: str) -> None:
    for name, operation in OPERATIONS.items():
        section = text.split(f"\n### {name}\n")[1].split("\n### ")[0]
        assert all(f"\n| `{field}` |" in section for field in operation.model_fields if field != "name")
        assert f"- name: {name}\n" in section
        assert " ".join((operation.__doc__ or "").split()) in " ".join(section.split())
    assert all(f"`{name}`" in text for name in NAMES)
    assert all(f"| `{kind}` |" in text for kind in KINDS)


def test_every_multiplier_is_there(text: str) -> None:
    spec, settings = ModelSpec(tiny_config()), Settings(1e-3, 8, 1, 0, None, None)
    run = RunState(spec, {}, settings, settings, spec, cursor=None)  # type: ignore[arg-type]  # not looked at
    assert all(f"| `{name}` |" in text for name in run.multipliers)


def test_every_example_plays(text: str) -> None:
    """That they are read is seen by `test_blocks`; here, that they fit a model."""
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) > len(OPERATIONS)
    spec = ModelSpec.of(add_adapters(tiny_model(n_layer=4), LoraArguments(2, 2)))
    for block in blocks:
        assert play(Schedule.of(read_text(block, "example.yaml").data), spec, Settings(1e-3, 8, 1, 10, 20, 50)), block


def test_every_option_of_a_run_is_there() -> None:
    page = PAGES["reference/options.md"]
    shown = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    assert shown | NOT_IN_HELP == set(ALL) | NOT_IN_HELP
    assert all(f"`{name}`" in page for name in NOT_IN_HELP - {"local_rank", "logging_nan_inf_filter"})


def test_every_field_of_a_plan_is_there() -> None:
    shown = set(re.findall(r"^\| `(\w+)` \|", PAGES["reference/plan_fields.md"], flags=re.MULTILINE))
    assert shown == set(StageFields.model_fields) | set(Part.model_fields)


def test_every_command_and_its_options_are_there() -> None:
    page = PAGES["reference/commands.md"]
    for name in COMMANDS:
        section = page.split(f"\n## `morph {name}`\n")[1].split("\n## ")[0]
        assert name == "train" or "usage: morph" in section
    assert "--at-loss X" in page
    assert "--overwrite" in help_of("data", "prepare", "--help")


def test_all_that_is_exported_is_in_the_api() -> None:
    page = PAGES["reference/api.md"]
    for name in set(morphing_trainer.__all__) - {"__version__"}:
        assert f":: morphing_trainer.{name}" in page


def test_docstrings_reach_the_site_as_it_reads_them() -> None:
    lines = ["Give `x` to `f(y)`.", "", "```python", "f(x)", "", "g(x)", "```", "``as it is``"]
    made = [
        "Give ``x`` to ``f(y)``.",
        "",
        "",
        ".. code-block:: python",
        "",
        "   f(x)",
        "",
        "   g(x)",
        "",
        "``as it is``",
    ]
    assert restructured(lines) == made
