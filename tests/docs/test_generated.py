"""The pages that are generated are fresh, and what they show can be used as it stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import NAMES, OPERATIONS
from morphing_trainer.planning import play
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from morphing_trainer.triggers import KINDS
from tests.support import tiny_config, tiny_model

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "operations.md"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_the_page_is_fresh(generator: ModuleType, text: str) -> None:
    assert generator.PAGE == PAGE
    assert generator.page() == text, "docs/operations.md is stale; run: python docs/generate.py"


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


def test_every_example_loads_and_plays(text: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) > len(OPERATIONS)
    spec = ModelSpec.of(add_adapters(tiny_model(n_layer=4), LoraArguments(2, 2)))
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        assert play(Schedule.load(path), spec, Settings(1e-3, 8, 1, 10, 20, 50)), block


def test_links_lead_somewhere(text: str) -> None:
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
