"""Digests of what ranks hold; real ranks that differ are in tests/trainer/test_failing_ranks.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.digest import Digest, Part, agree, difference, digest, facts, parts_of
from morphing_trainer.run.resume import batch_given, divided_anew
from morphing_trainer.settings import Settings
from tests.conformance.common import with_history
from tests.support import same


def held() -> dict[Part, Any]:
    weights = [("a", torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))), ("b", torch.zeros(2, dtype=torch.bfloat16))]
    return parts_of(weights, {"a": {"exp_avg": torch.ones(2, 3), "step": torch.tensor(4.0)}, "b": {"steps": 3}})


def between(*ranks: Digest) -> str:
    return difference([{part: (each.parts[part], each.shown[part]) for part in each.parts} for each in ranks])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({Part("a", "weight"): torch.zeros(2, 3)}, "a (weight): other values on rank 1"),
        (
            {Part("a", "exp_avg"): torch.full((2, 3), 1 + 2**-23)},
            "a (exp_avg): other values on rank 1 than on rank 0 (1 of 5",
        ),
        ({Part("a", "step"): torch.tensor(4)}, "a (step): torch.int64 [] on rank 1, torch.float32 [] on rank 0"),
        ({Part("b", "weight"): torch.zeros(1, 2, dtype=torch.bfloat16)}, "b (weight): torch.bfloat16 [1, 2] on rank 1"),
        ({Part("b", "steps"): 4}, "b (steps): 4 on rank 1, 3 on rank 0"),
        ({Part("c", "weight"): torch.zeros(2)}, "c (weight): only on rank 1"),
    ],
)
def test_the_first_difference_is_named(change: dict[Part, Any], said: str) -> None:
    changed = held() | change
    changed = {part: torch.nn.Parameter(v) if part == Part("a", "weight") else v for part, v in changed.items()}
    ours, theirs = digest(held()), digest(changed)
    assert ours.root != theirs.root
    assert f"the ranks differ in {said}" in between(ours, theirs)


def test_equal_tensors_have_equal_digests() -> None:
    assert digest(held()) == digest(held())
    flipped = held()
    flipped[Part("a", "weight")] = torch.nn.Parameter(flipped[Part("a", "weight")].detach().t().contiguous().t())
    assert digest(flipped).root == digest(held()).root, "strides do not count"
    flipped[Part("a", "weight")].requires_grad_(False)
    assert "frozen on rank 1" in between(digest(held()), digest(flipped))


def test_of_shards_only_names_shapes_and_types_count() -> None:
    other = held() | {Part("a", "exp_avg"): torch.zeros(2, 3)}
    sharded = {id(other[Part("a", "exp_avg")])}
    ours = held()
    sharded.add(id(ours[Part("a", "exp_avg")]))
    left, right = (digest(each, lambda value: id(value) not in sharded) for each in (ours, other))
    assert left.root == right.root


def test_which_ranks() -> None:
    ours, theirs = digest(held()), digest(held() | facts("setting", {"rate": 1}))
    assert "rate (setting): only on ranks 1, 3" in between(ours, theirs, ours, theirs)
    assert "rate (setting): not on rank 1" in between(theirs, ours)


def test_one_process_hashes_nothing_and_nothing_changes() -> None:
    model, _ = with_history()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    agree(Consensus(), model.named_parameters(), {}, "here")
    digest(parts_of(model.named_parameters(), {}))
    assert same(before, {name: each.detach() for name, each in model.named_parameters()})


def settings(batch: int, accum: int = 1, samples: int | None = None) -> Settings:
    return Settings(1e-3, batch, accum, 0, None, None, step_samples=samples)


@pytest.mark.parametrize(
    ("now", "saved", "before", "processes", "expected"),
    [
        (8, settings(8), 1, 2, (4, 1, None)),
        (8, settings(8), 1, 4, (2, 1, None)),
        (8, settings(2), 4, 1, (8, 1, None)),
        (4, settings(4), 4, 1, (4, 4, None)),  # what fits on a device stays the most
        (8, settings(8, 3), 1, 2, (8, 2, 24)),
        (8, settings(5), 1, 2, (3, 1, 5)),
        (8, settings(3, 1, 5), 2, 2, (3, 1, 5)),
    ],
)
def test_a_step_keeps_its_samples(now: int, saved: Settings, before: int, processes: int, expected: Any) -> None:
    found = divided_anew(settings(now), saved, before, processes)
    assert (found.batch_size, found.grad_accum, found.step_samples) == expected


def test_what_asks_for_another_batch() -> None:
    device, whole = {"batch_size": None}, {"batch_size": 8}
    assert batch_given({"per_device_train_batch_size"}, device, device)
    assert not batch_given({"world_size", "max_steps"}, device, device)
    assert not batch_given({"per_device_train_batch_size", "world_size"}, whole, whole), "it follows from batch_size"
    assert batch_given({"batch_size", "per_device_train_batch_size"}, whole, whole)
    assert batch_given({"batch_size"}, device, whole)
