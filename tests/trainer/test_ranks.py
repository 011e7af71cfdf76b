"""Two processes over gloo against one, on the same global batches.

The sums of a batch are made in another order there, so figures agree up to rounding: losses within 2e-5 relative,
weights within 2e-4 absolute after 24 steps of Adam at rate 1e-2 in float32. The ranks agree to the bit.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.run.journal import effective, read_journal
from tests.support import same
from tests.trainer.common import entry
from tests.trainer.program import Job, complete, finish, start

SCHEDULE = [
    entry("stack_layers", 2, 2),
    entry("freeze_layer", ["attn.0", "mlp.2-3"], 2),
    entry("change_grad_accum", 1.5, 3),
    entry("widen_mlp", 2, 2),
    entry("change_batch_size", 1.5, 3),
    entry("unfreeze_layer", "attn.0", 2),
    entry("reset_optimizer_state", "mlp.*", 2),
    entry("change_batch_size", 0.6667, trigger_loss=9.0),
]
# 41 samples in global batches of 4 and 6: the last one of an epoch has one sample or five, and one rank may get none.
OPTIONS = {
    "max_steps": 24,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "dataloader_drop_last": False,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-5,  # far above rounding, which Adam would blow up where a gradient is zero
}


def job(folder: Path, **changes: Any) -> Job:
    options = {**OPTIONS, **changes.pop("options", {})}
    return Job(folder, changes.pop("schedule", SCHEDULE), options=options, **changes)


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    pair = complete(job(tmp_path / "pair"), processes=2)
    single = complete(job(tmp_path / "single", options={"per_device_train_batch_size": 4}))
    operations = [
        [(event["record"]["operation"], event["step"], event["record"]["tokens"]) for event in events]
        for events in (
            [e for e in effective(read_journal(run.folder / "journal.jsonl")) if e["event"] == "operation"]
            for run in (pair, single)
        )
    ]
    assert len(operations[0]) == len(SCHEDULE)
    assert operations[0] == operations[1]
    assert same(pair.weights(0), pair.weights(1))
    assert pair.losses(0) == pair.losses(1)
    assert pair.losses() == pytest.approx(single.losses(), rel=2e-5)
    assert len(pair.losses()) == 24
    ours, theirs = pair.weights(), single.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [(11,), pytest.param((4, 22), marks=pytest.mark.long)], ids=["between", "around"])
def test_resume_is_exact(tmp_path: Path, steps: Sequence[int]) -> None:
    """With dropout, which draws other numbers on each rank, from before, between and after operations."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = complete(job(tmp_path / "whole", dropout=0.1, options=saving), processes=2)
    for step in steps:
        resumed = job(tmp_path / f"from-{step}", dropout=0.1, resume=str(whole.folder / f"checkpoint-{step}"))
        complete(resumed, processes=2)
        for rank in (0, 1):
            assert same(resumed.weights(rank), whole.weights(rank))
        assert resumed.losses() == whole.losses()


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    """All save the same step and leave with the code of the signal; resumed, the run ends as it would have."""
    saving = {"save_strategy": "steps", "save_steps": 100}
    whole = complete(job(tmp_path / "whole", dropout=0.1, options=saving), processes=2)
    stopped = job(tmp_path / "stopped", dropout=0.1, signals=[(1, 7, signal.SIGTERM)], options=saving)
    assert finish(start(stopped, 2)) == [143, 143]
    assert [path.name for path in checkpoints(stopped.folder)] == ["checkpoint-7"]
    assert (stopped.folder / "checkpoint-7" / "rng_state_1.pth").is_file()
    complete(job(stopped.folder, dropout=0.1, resume=True, options=saving), processes=2)
    assert same(stopped.weights(), whole.weights())


def test_another_number_of_processes_goes_on_with_the_next_samples(tmp_path: Path) -> None:
    """Without dropout, which each rank draws for itself, losses are those of the run that was not interrupted."""
    saving = {"save_strategy": "steps", "save_steps": 1}
    pair = complete(job(tmp_path / "pair", options=saving), processes=2)
    single = {"per_device_train_batch_size": 4, **saving}
    for step in (5, 11):
        alone = job(tmp_path / f"alone-{step}", resume=str(pair.folder / f"checkpoint-{step}"), options=single)
        complete(alone)
        assert alone.losses() == pytest.approx(pair.losses(), rel=2e-5)
    both = job(tmp_path / "both", resume=str(alone.folder / "checkpoint-13"), options=saving)
    complete(both, processes=2)
    assert both.losses() == pytest.approx(pair.losses(), rel=2e-5)


def test_averaging_tokens_per_process_is_refused(tmp_path: Path) -> None:
    """A process that is left without a sample would divide by no tokens."""
    alone = job(tmp_path / "run", options={"average_tokens_across_devices": False})
    assert finish(start(alone, 2)) == [1, 1]
    assert "average_tokens_across_devices: must stay true" in (alone.results / "0.log").read_text()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("grow", "MemoryError: no memory left"),
        ("save", "StorageError: step 3: the checkpoint could not be saved"),
        ("write", "StorageError: step 3: the checkpoint could not be saved"),
    ],
)
def test_a_failure_on_one_rank_stops_all_at_once(tmp_path: Path, what: str, said: str) -> None:
    """None waits for the one that failed, and the others say why they stop."""
    failing = 0 if what == "save" else 1
    alone = job(tmp_path / "run", fails=(failing, what), options={"save_strategy": "steps", "save_steps": 3})
    assert finish(start(alone, 2), seconds=60) == [1, 1]
    other = (alone.results / f"{1 - failing}.log").read_text()
    assert f"RankError: rank {failing} failed, so all ranks stop: {said}" in other
    assert not checkpoints(alone.folder) or what == "grow"


def test_one_rank_looks_at_checkpoints_and_all_take_what_it_has_found(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole, cut = job(tmp_path / "whole", options=saving), job(tmp_path / "cut", options=saving)
    complete(whole, processes=2)
    complete(cut, processes=2)
    newest = max(checkpoints(cut.folder), key=lambda path: int(path.name.rpartition("-")[2]))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    complete(replace(cut, resume=True), processes=2)
    told = [(cut.results / f"{rank}.log").read_text().count("is damaged and is passed over") for rank in (0, 1)]
    assert told == [1, 0]
    assert cut.losses() == whole.losses()
