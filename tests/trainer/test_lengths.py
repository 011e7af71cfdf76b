"""Runs end where they should, and every sample of every epoch is trained on exactly once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import MorphingTrainer
from tests.trainer.common import Ledger, applied, entry, ledger


def epochs_of(trainer: Ledger, count: int) -> list[list[int]]:
    """The samples that were trained on, cut into epochs."""
    samples = trainer.samples
    return [samples[start : start + count] for start in range(0, len(samples), count)]


def test_max_steps_is_exact_through_changes(tmp_path: Path) -> None:
    schedule = [
        entry("change_batch_size", 2, 3),
        entry("set_grad_accum", 2, 2),
        entry("stack_layers", 2, 1),
        entry("set_batch_size", 3, 4),
    ]
    trainer = ledger(tmp_path, 30, schedule, max_steps=17)
    trainer.train()
    assert trainer.state.global_step == 17
    sizes = trainer.micro_batches()
    assert [sizes[step] for step in range(1, 18)] == [
        [4],
        [4],
        [4],
        [8],
        [8],
        [2],  # the end of the first epoch: 12 + 16 + 2
        [8, 8],
        [8, 6],
        [8, 8],
        [8, 6],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
        [3, 3],
    ]
    assert applied(trainer) == [
        ("change_batch_size", 3),
        ("set_grad_accum", 5),
        ("stack_layers", 6),
        ("set_batch_size", 10),
    ]


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_every_sample_once_an_epoch(tmp_path: Path, strategy: str) -> None:
    schedule = [
        entry("change_batch_size", 1.5, 2),
        entry("stack_layers", 2, 1, init="identity"),
        entry("set_grad_accum", 3, 2),
        entry("widen_mlp", 2, 2),
        entry("set_batch_size", 1, 1),
        entry("freeze_layer", "wpe", 3),
        entry("set_batch_size", 7, 2),
    ]
    trainer = ledger(tmp_path, 41, schedule, max_steps=-1, num_train_epochs=3, train_sampling_strategy=strategy)
    trainer.train()
    assert len(applied(trainer)) == 7
    epochs = epochs_of(trainer, 41)
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(41))
    assert (epochs[0] == epochs[1]) == (strategy == "sequential")
    assert trainer.state.epoch == 3.0
    assert trainer.state.global_step == trainer.state.max_steps == max(trainer.micro_batches())


def steps(trainer: MorphingTrainer) -> tuple[int, int]:
    trainer.train()
    return trainer.state.global_step, trainer.state.max_steps


# 30 samples, batch 4: 8 micro-batches an epoch.
@pytest.mark.parametrize(
    ("schedule", "epochs", "expected", "samples"),
    [
        ([], 2, 16, 60),
        ([entry("set_batch_size", 8, 4)], 2, 4 + 2 + 4, 60),  # 16 samples, then 14 in 2 steps, then 30 in 4
        ([entry("set_batch_size", 2, 4)], 1, 4 + 7, 30),
        ([entry("set_grad_accum", 3, 2)], 2, 2 + 2 + 3, 60),  # 8, then 22 in 6 micro-batches, then 8 micro-batches
        ([entry("set_batch_size", 64, 3)], 2, 3 + 1 + 1, 60),
        ([], 1.5, 12, 46),  # half an epoch is 4 of 8 steps
        ([entry("set_batch_size", 8, 4)], 1.5, 4 + 2 + 2, 46),
        ([entry("set_batch_size", 5, 10)], 1.5, 8 + 2 + 2, 30 + 8 + 10),  # 8 of 15 samples read: 7 left, 2 steps of 5
        ([entry("set_batch_size", 30, 11)], 1.5, 8 + 3 + 1, 30 + 12 + 18),
        ([entry("set_batch_size", 8, 8)], 2, 8 + 4, 60),  # between epochs
        ([entry("set_batch_size", 8, 0)], 2, 8, 60),  # before the first step
    ],
)
def test_epochs_end_by_samples(tmp_path: Path, schedule: list[Any], epochs: float, expected: int, samples: int) -> None:
    trainer = ledger(tmp_path, 30, schedule, max_steps=-1, num_train_epochs=epochs)
    assert steps(trainer) == (expected, expected)
    assert len(trainer.samples) == samples
    assert len(applied(trainer)) == len(schedule)


def test_drop_last(tmp_path: Path) -> None:
    """Batches of 4 twice, then of 8: 22 samples left, 16 read. Next epoch 24 of 30."""
    schedule = [entry("set_batch_size", 8, 2)]
    trainer = ledger(tmp_path, 30, schedule, max_steps=-1, num_train_epochs=2, dataloader_drop_last=True)
    assert steps(trainer) == (2 + 2 + 3, 2 + 2 + 3)
    assert trainer.micro_batches() == {1: [4], 2: [4], **{step: [8] for step in range(3, 8)}}
    assert max(Counter(trainer.samples[:24]).values()) == 1


def test_batch_larger_than_what_drop_last_leaves(tmp_path: Path) -> None:
    """Nothing of this epoch makes a complete batch any more: the run goes on with the next one."""
    schedule = [entry("set_batch_size", 16, 5)]
    trainer = ledger(tmp_path, 30, schedule, max_steps=-1, num_train_epochs=3, dataloader_drop_last=True)
    assert steps(trainer) == (5 + 2, 5 + 2)
    assert trainer.micro_batches() == {**{step: [4] for step in range(1, 6)}, 6: [16], 7: [16]}


def test_last_accumulation_of_an_epoch_is_smaller(tmp_path: Path) -> None:
    trainer = ledger(tmp_path, 30, max_steps=6, gradient_accumulation_steps=3)
    trainer.train()
    sizes = trainer.micro_batches()
    assert [len(sizes[step]) for step in range(1, 7)] == [3, 3, 2, 3, 3, 2]
    assert sum(sizes[3]) == 6


def test_tokens_and_epoch_are_counted(tmp_path: Path) -> None:
    trainer = ledger(tmp_path, 30, [entry("set_batch_size", 6, 2)], max_steps=4)
    trainer.train()
    assert trainer.session is not None
    assert trainer.session.state.tokens == (4 + 4 + 6 + 6) * 8
    assert trainer.state.epoch == pytest.approx(20 / 30)
