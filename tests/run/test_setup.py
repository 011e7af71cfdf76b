"""What a run notes of how it was told, and of what it showed and cost, for its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.flops import flops_per_token
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.examples import Example
from morphing_trainer.run.setup import HIDDEN, command, setup
from morphing_trainer.run.shown import MOST, append_example, begin_examples, read_examples
from morphing_trainer.run.stretches import Stretch, fits, read_work, spent
from tests.support import LENGTH, trainer
from tests.trainer.common import StopsAfter, entry


@dataclass
class Options:
    """Some."""

    seed: int = 42
    names: list[str] = field(default_factory=lambda: ["a"])
    hub_token: str | None = None
    eval_example_tokens: int = 6
    debug: str = "x"


def test_secrets_are_not_written_down() -> None:
    said = command(["/usr/bin/morph", "train", "--hub_token", "hf_1", "--hub_token=hf_2", "--max_tokens", "7"])
    assert said == ["morph", "train", "--hub_token", HIDDEN, f"--hub_token={HIDDEN}", "--max_tokens", "7"]
    said = command(["train.py", "--api-key", "x", "--tokenizer_name", "y", "--monkey", "z"])
    assert said == ["train.py", "--api-key", HIDDEN, "--tokenizer_name", "y", "--monkey", "z"]
    assert command([]) == []
    found = setup({"options": Options(hub_token="hf_3")}, "cpu", 1)
    assert "hf_3" not in json.dumps(found) and found["arguments"]["options"]["hub_token"] == HIDDEN


def test_what_differs_from_the_defaults_is_told_apart() -> None:
    found = setup({"options": Options(names=["b"], debug="y")}, "cpu", 2)
    assert found["changed"] == {"options": ["names"]}, "of `debug` the Trainer makes something else by itself"
    assert found["arguments"]["options"]["seed"] == 42 and (found["device"], found["processes"]) == ("cpu", 2)
    assert {"torch", "transformers", "python", "morphing-trainer"} <= set(found["versions"])
    replaced = setup({"options": (Options(), {"seed": 7})}, "cpu", 1)
    assert replaced["arguments"]["options"]["seed"] == 7 and replaced["changed"]["options"] == ["seed"]


def test_a_run_keeps_its_examples_over_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    begin_examples(path, 0)
    assert not path.exists()
    for step in (5, 10, 15):
        append_example(path, step, Example(f"p{step}", "t", "nan"))
        append_example(path, step, Example("q", "t", "x" * 10_000, name="books"))
    begin_examples(path, 10)
    found, faults = read_examples(path)
    assert [(line["step"], line["name"]) for line in found] == [(5, ""), (5, "books"), (10, ""), (10, "books")]
    assert not faults and found[0]["prediction"] == "nan" and len(found[1]["prediction"]) == MOST
    append_example(path, 10, Example("p10", "t", "again"))
    assert [line["prediction"] for line in read_examples(path)[0] if not line["name"]] == ["nan", "again"]
    with path.open("ab") as file:
        file.write(
            b'\xff\n{"step": -1}\n{"step": true, "name": "", "prompt": "", "truth": "", "prediction": ""}\n{"step": 3'
        )
    found, faults = read_examples(path)
    assert len(found) == 4 and [fault.split(":")[0] for fault in faults] == ["6", "7", "8"]


def test_surrogates_and_controls_survive(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    texts = ["\ud800</script>", "a\x00b\u2028c", "\n\r\x85"]
    append_example(path, 1, Example(*texts))
    (line,) = read_examples(path)[0]
    assert [line["prompt"], line["truth"], line["prediction"]] == texts


def test_what_a_run_has_cost(tmp_path: Path) -> None:
    """Of a run that is resumed, as of one that was not; the numbers are those of its models."""
    schedule = [entry("stack_layers", 2, 3), entry("set_batch_size", 2, 0), entry("freeze_layer", "attn.0", 3)]
    schedule.append(entry("widen_mlp", 2, 3))
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "eval_steps": 5}
    whole = trainer(tmp_path / "whole", schedule, **options)
    whole.train()
    trainer(tmp_path / "cut", schedule, callbacks=[StopsAfter(9)], **options).train()
    trainer(tmp_path / "cut", schedule, **options).train(str(tmp_path / "cut" / "checkpoint-8"))
    found, again = (read_work(tmp_path / name / "stats" / "work.json") for name in ("whole", "cut"))
    events = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    specs = [event["spec"] for event in events if event["event"] in ("start", "operation")]
    assert [phase.cost for phase in found] == [flops_per_token(ModelSpec.from_dict(spec), LENGTH) for spec in specs]
    assert [phase.tokens for phase in found] == [0, 192, 256, 352, 448] and again == found
    assert fits(found, whole._reports.records) and not fits(found[:-1], whole._reports.records)
    assert spent(200, found) == 192 * found[0].cost + 8 * found[1].cost
    told = json.loads((tmp_path / "cut" / "stats" / "setup.json").read_text())["arguments"]["training"]
    assert told["per_device_train_batch_size"] == 4, "as the command gave it, not as the resumed run has it by now"


@pytest.mark.parametrize(
    "content", ["", "[]", '{"phases": 3}', '{"phases": [[0, "x"]]}', '{"phases": [[0, -1]]}', "[" * 10**5]
)
def test_a_file_that_tells_no_costs(tmp_path: Path, content: str) -> None:
    (tmp_path / "work.json").write_text(content)
    assert read_work(tmp_path / "work.json") == [] == read_work(tmp_path / "none.json")
    assert spent(5.0, [Stretch(0.0, 2.0)]) == 10.0


def test_what_cannot_be_noted_costs_the_report_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path / "run", max_steps=2, eval_strategy="no", eval_steps=None)
    run.described = {"mine": 3}
    assert run.train().global_step == 2
    assert "the report in" in caplog.text and "will lack something" in caplog.text
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "stats" / "setup.json").exists()
    assert (tmp_path / "run" / "stats" / "overall.json").exists(), "the statistics go on"
