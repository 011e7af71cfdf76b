"""`morph ops`: everything there is, from the classes themselves; names that are none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from morphing_trainer.cli import morph
from morphing_trainer.operations import NAMES, OPERATIONS
from morphing_trainer.reporting.reference import conditions, facts_of, families, looked_up, parted
from morphing_trainer.reporting.reference_texts import CONDITION_EXAMPLES
from morphing_trainer.reporting.reference_view import listing, reference, section_lines, section_view
from morphing_trainer.schedule import Schedule
from morphing_trainer.triggers import KINDS


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert morph.main(["ops", *argv]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(told(capsys, *argv, "--json"))


def test_the_list_has_everything_under_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys).splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings == [*families(), "Triggers (under when:)"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*OPERATIONS, *KINDS]
    (line,) = (line for line in lines if line.startswith("  set_lr "))
    assert " ".join(line.split()).startswith("set_lr number above 0 Set the peak learning rate; the scheduler's factor")
    assert [entry["name"] for entry in as_json(capsys)] == [*OPERATIONS, *KINDS]


@pytest.mark.parametrize("name", [*NAMES, *KINDS])
def test_each_has_a_reference(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, found = told(capsys, name), as_json(capsys, name)
    kind = NAMES.get(name)
    assert found["name"] == (name if kind is None else kind.model_fields["name"].default)
    words = " ".join(text.split())
    assert " ".join(found["idea"].split()) in words and found["idea"]
    if kind is None:
        assert found["sort"] == "condition"
        schedule = Schedule.of([{"name": "change_lr", "value": 2, "when": found["example"]}])
        assert schedule.entries[0].trigger.to_data().keys() == {name}
        return
    assert [field["name"] for field in found["fields"]] == [field for field in kind.model_fields if field != "name"]
    for field in found["fields"]:
        info = kind.model_fields[field["name"]]
        assert field["required"] == info.is_required()
        assert field["default"] == (None if info.is_required() else info.default)
        assert f"  {field['name']} " in text and field["type"] in text
    for key in ("trigger_loss", "max_wait_iters", "when", "reevaluate", "guard", "desc", "completed", "repeat"):
        assert f"\n  {key} " in text
    docstring = " ".join((kind.__doc__ or "").split())
    for aside in ("limits", "source"):
        assert (f"\n{aside}\n" in text) == bool(found[aside])
    assert all(" ".join(found[part].split("\n")[0].split()) in docstring for part in ("idea", "limits") if found[part])
    assert len(Schedule.of([found["example"]])) == 1


def test_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "increase_hidden_dim")
    assert text.startswith("widen_mlp, also written increase_hidden_dim: Width; changes the model")
    assert "\n  split  uneven or even or newborn  default: uneven\n" in text
    assert "\nsource\n  Net2WiderNet (Chen et al. 2016), with uneven shares.\n" in text
    assert "\nlimits\n  depth times factor must be a whole number" in told(capsys, "stack_layers")
    assert "\ncomponents\n  `attn.N`" in told(capsys, "freeze_layer")
    assert "\n  window  whole number from 2\n" in told(capsys, "plateau")
    assert "[" not in text.split("example")[0].split("and in every entry")[1].replace("{", ""), "no links, no Markdown"


def test_triggers_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert [entry["name"] for entry in as_json(capsys, "triggers")] == list(KINDS) == list(CONDITION_EXAMPLES)
    assert [facts.name for facts in conditions()] == list(KINDS)
    assert told(capsys, "triggers").startswith("Triggers (under when:)\n  loss_below ")
    assert [facts.name for facts in looked_up("Learning rate")] == [facts.name for facts in looked_up("learning-rate")]
    assert {facts.name for facts in looked_up("lora")} == {
        name for name, kind in OPERATIONS.items() if kind.family == "LoRA"
    }


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stack_layer", "; did you mean 'stack_layers'?"),
        ("plateu", "; did you mean 'plateau'?"),
        ("lorra", "; did you mean 'lora'?"),
        ("xyzzy", "; `morph ops` lists them all"),
        ("", "; `morph ops` lists them all"),
    ],
)
def test_names_that_are_none(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main(["ops", name]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: morph ops: no operation, condition or family ") and hint in err


def test_a_docstring_in_its_parts() -> None:
    text = "Do it.\n\nMore.\nSource: A (1999),\nand B.\n\nLimits: none\nto speak of."
    assert parted(text) == ("Do it.\n\nMore.", "none to speak of.", "A (1999), and B.")
    assert parted("Do it.") == ("Do it.", "", "")
    assert facts_of(OPERATIONS["stack_layers"]).source.startswith("G_stack (Du et al. 2024)")  # the module's


def test_on_a_terminal() -> None:
    for width in (50, 100, 160):
        for sections in (
            listing(facts_of(kind) for kind in OPERATIONS.values()),
            reference(facts_of(OPERATIONS["stack_layers"])),
        ):
            console = Console(width=width, record=True, file=io.StringIO())
            console.print(section_view(sections))
            shown = console.export_text()
            assert all(len(line) <= width for line in shown.splitlines())
            words = "".join(shown.split())
            assert all("".join(heading.split()) in words for heading, _ in sections)
            assert "".join(section_lines(sections)[1].split())[:12] in words


def test_help_needs_no_torch() -> None:
    """Whoever only wants to know what there is does not wait."""
    code = (
        "import sys\nfrom morphing_trainer.cli import morph\n"
        "for name in ('ops', 'validate', 'schema'):\n"
        "    try:\n        morph.main([name, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "morph.main(['schema'])\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes: 0 shown" in done.stdout
