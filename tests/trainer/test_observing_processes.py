"""Statistics and the trigger on ranks under sudden death, and on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from morphing_trainer import LoraArguments
from morphing_trainer.run.history import read_history
from morphing_trainer.run.journal import effective, read_journal
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, killed_repeatedly, start

SCHEDULE = [
    entry("set_attn_lora_rank", 6, when={"rank_use_above": 0.3}),
    entry("stack_layers", 2, when={"all": [{"rank_use_above": 0.3}, {"waited": 3}]}),
]
OPTIONS = {"max_steps": 14, "eval_steps": 2, "analysis_evals": 2}


def job(folder: Path, **changes: Any) -> Job:
    options = {**OPTIONS, **changes.pop("options", {})}
    return Job(folder, SCHEDULE, options=options, lora=LoraArguments(lora_r=4), **changes)


def operations(run: Job) -> list[tuple[str, int, str]]:
    events = effective(read_journal(run.folder / "journal.jsonl"))
    return [(e["record"]["operation"], e["step"], e["record"]["trigger"]) for e in events if e["event"] == "operation"]


def analyses(run: Job) -> list[dict[str, Any]]:
    lines = read_history(run.folder / "stats" / "history.jsonl")
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in lines if "analysis/rank_use" in line
    ]


def test_killed_and_resumed_it_finds_and_does_the_same(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = job(tmp_path / "whole", options=saving, dropout=0.1)
    reference = start(whole)
    killed = job(tmp_path / "killed", options=saving, dropout=0.1, resume="if possible", pause=0.05)
    reached = killed_repeatedly(killed, [0.1, 0.05, 0.15])
    assert 0 < reached[-1] < 14
    complete(killed)
    assert finish(reference) == [0]
    assert same(killed.weights(), whole.weights())
    assert operations(killed) == operations(whole) and len(operations(whole)) == 2
    assert analyses(killed) == analyses(whole)
    found = [json.loads((run.folder / "stats" / "overall.json").read_text()) for run in (killed, whole)]
    for statistics in found:
        statistics["train"].pop("seconds")
        statistics.pop("timing")
        statistics["validation"] = {k: v for k, v in statistics["validation"].items() if not k.startswith("time")}
    assert found[0] == found[1] and found[0]["train"]["steps"] == 14


def test_two_processes_agree_and_one_writes(tmp_path: Path) -> None:
    run = complete(job(tmp_path / "run"), processes=2)
    assert [name for name, _, _ in operations(run)] == ["set_attn_lora_rank", "stack_layers"]
    left, right = run.weights(0), run.weights(1)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert [line["step"] for line in analyses(run)] == [4, 8, 12]
    lines = read_history(run.folder / "stats" / "history.jsonl")
    assert len({(line["step"], *sorted(line)) for line in lines}) == len(lines)  # each line once
    found = json.loads((run.folder / "stats" / "overall.json").read_text())
    assert found["train"]["tokens"] == found["train"]["samples"] * 16  # of both
