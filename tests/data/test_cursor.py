from __future__ import annotations

import json
from itertools import islice

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from morphing_trainer.data.cursor import PLACEHOLDER, Batch, Cursor, CursorBatchSampler, share_of
from morphing_trainer.data.orders import permutation
from morphing_trainer.errors import CheckpointError, DataError

EXAMPLES = settings(settings.get_profile("data"))


def sampler_of(
    cursor: Cursor, batch_size: int, ranks: int = 1, rank: int = 0, drop_last: bool = False, accum: int = 1
) -> CursorBatchSampler:
    return CursorBatchSampler(cursor, Batch(batch_size, batch_size * ranks * accum, ranks, drop_last), rank)


@pytest.mark.parametrize("seed", [0, 42, 2**40])
def test_permutation_is_the_order_of_accelerate(seed: int) -> None:
    sampler = SeedableRandomSampler(range(1000), data_seed=seed)
    for epoch in range(3):  # the sampler counts its epochs itself
        assert permutation(1000, seed, epoch).tolist() == list(sampler)


def test_permutation_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    permutation(100, 1, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 25, 26, 100])
def test_one_process_reads_what_torch_reads(batch_size: int, drop_last: bool) -> None:
    cursor = Cursor(length=103, seed=3, epoch=2)
    sampler = sampler_of(cursor, batch_size, drop_last=drop_last)
    expected = list(BatchSampler(permutation(103, 3, 2).tolist(), batch_size, drop_last))
    assert list(sampler) == expected
    assert len(sampler) == len(expected)


def test_without_shuffle_the_order_is_that_of_the_data() -> None:
    cursor = Cursor(length=5, seed=0, shuffle=False, epoch=3, position=1)
    assert list(sampler_of(cursor, 2)) == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("left", "shares"),
    [
        (12, [(0, 4), (4, 8), (8, 12)]),
        (11, [(0, 4), (4, 8), (8, 11)]),
        (7, [(0, 3), (3, 5), (5, 7)]),
        (2, [(0, 1), (1, 2), (2, 2)]),
        (1, [(0, 1), (1, 1), (1, 1)]),
    ],
)
def test_an_incomplete_micro_batch_is_shared_evenly(left: int, shares: list[tuple[int, int]]) -> None:
    for rank, (start, stop) in enumerate(shares):
        full, last = (share_of(span, 3, rank) for span in ((0, 12), (12, 12 + left)))
        assert full == range(4 * rank, 4 * rank + 4)
        assert (last.start, last.stop) == (12 + start, 12 + stop)


def test_a_rank_without_a_sample_gets_a_placeholder() -> None:
    cursor = Cursor(length=5, seed=0, shuffle=False)
    batches = [list(sampler_of(cursor, 2, ranks=2, rank=rank)) for rank in range(2)]
    assert batches == [[[0, 1], [4]], [[2, 3], [PLACEHOLDER]]]


segments = st.lists(
    st.tuples(
        st.integers(1, 9),  # batch size
        st.integers(1, 5),  # ranks
        st.integers(0, 6),  # micro-batches trained on
        st.integers(0, 3),  # micro-batches fetched ahead, and lost
        st.booleans(),  # restart from a checkpoint afterwards
    ),
    max_size=6,
)


@EXAMPLES
@given(length=st.integers(1, 120), seed=st.integers(0, 2**32), shuffle=st.booleans(), segments=segments)
def test_no_sample_is_lost_or_seen_twice(
    length: int, seed: int, shuffle: bool, segments: list[tuple[int, int, int, int, bool]]
) -> None:
    cursor = Cursor(length, seed, shuffle)
    trained: list[int] = []
    for batch_size, ranks, steps, ahead, restart in [*segments, (7, 2, length, 0, False)]:  # the last reads the rest
        samplers = [sampler_of(cursor, batch_size, ranks, rank) for rank in range(ranks)]
        fetched = [list(islice(sampler, steps + ahead)) for sampler in samplers]
        assert len({len(batches) for batches in fetched}) == 1, "all ranks take the same number of steps"
        steps = min(steps, len(fetched[0]))
        for step in range(steps):
            real = [index for batches in fetched for index in batches[step] if index != PLACEHOLDER]
            assert len(real) == samplers[0].layout.samples_in(step, 1)
            trained += real
            cursor.advance_to(samplers[0].layout.position_after(step + 1))  # while the samplers go on
        assert samplers[-1].layout.samples_in(0, steps) == sum(
            samplers[0].layout.samples_in(step, 1) for step in range(steps)
        )
        if restart:
            cursor = Cursor.from_state(json.loads(json.dumps(cursor.state())), length)
    assert trained == cursor.arranged.indices.tolist()
    assert sorted(trained) == list(range(length))
    assert cursor.remaining == 0
    assert cursor.fraction == 1.0
    assert len(samplers[0]) == 0
    assert list(samplers[0]) == []


@EXAMPLES
@given(length=st.integers(1, 120), position=st.integers(0, 120), batch_size=st.integers(1, 9), ranks=st.integers(1, 4))
def test_drop_last_leaves_out_less_than_one_micro_batch(
    length: int, position: int, batch_size: int, ranks: int
) -> None:
    position = min(position, length)
    cursor = Cursor(length, seed=1, position=position)
    samplers = [sampler_of(cursor, batch_size, ranks, rank, drop_last=True) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert all(len(batch) == batch_size for own in batches for batch in own)
    read = [index for step in zip(*batches, strict=True) for batch in step for index in batch]
    assert read == cursor.arranged.indices[position : position + len(read)].tolist()
    assert length - position - len(read) < batch_size * ranks
    assert samplers[0].layout.samples_in(0, len(samplers[0]) + 5) == len(read)


def test_each_epoch_has_its_own_order_and_the_cursor_rolls_over() -> None:
    cursor = Cursor(length=50, seed=9)
    first = next(iter(sampler_of(cursor, 50)))
    cursor.advance_to(20)
    assert cursor.fraction == pytest.approx(0.4)
    assert cursor.remaining == 30
    cursor.next_epoch()
    assert (cursor.epoch, cursor.position) == (1, 0)
    second = next(iter(sampler_of(cursor, 50)))
    assert second == permutation(50, 9, 1).tolist() != first


def test_a_segment_starts_when_its_iterator_is_made() -> None:
    cursor = Cursor(length=10, seed=0, shuffle=False)
    sampler = sampler_of(cursor, 2)
    cursor.advance_to(4)
    batches = iter(sampler)
    cursor.advance_to(6)
    assert next(batches) == [4, 5]
    assert sampler.layout.samples_in(0, 1) == 2
    assert sampler.layout.samples_in(0, 99) == 6
    assert len(sampler) == 2  # from where the cursor is now


def test_the_cursor_does_not_run_past_the_epoch() -> None:
    cursor = Cursor(length=4, seed=0, position=3)
    with pytest.raises(AssertionError, match="from 3 to 5 of 4"):
        cursor.advance_to(5)


def test_a_data_set_without_samples_is_refused() -> None:
    with pytest.raises(DataError, match="has no samples"):
        Cursor(length=0, seed=0)


STATE = Cursor(length=10, seed=3, epoch=1, position=4).state()


def test_the_state_is_plain_json_and_comes_back() -> None:
    assert json.loads(json.dumps(STATE)) == {"length": 10, "seed": 3, "shuffle": True, "epoch": 1, "position": 4}
    assert Cursor.from_state(STATE, 10) == Cursor(length=10, seed=3, epoch=1, position=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 11}, r"trained on 11 samples per epoch, but the data set now has 10.*Resume with the same data"),
        ({"position": 11}, "position 11 is not within 10 samples"),
        ({"position": -1}, "position -1 is not within"),
        ({"epoch": -1}, "epoch -1"),
        ({"epoch": True}, "'epoch' must be a whole number, is True"),
        ({"seed": "3"}, "'seed' must be a whole number, is '3'"),
        ({"position": 4.0}, "'position' must be a whole number"),
        ({"shuffle": 1}, "'shuffle' must be true or false, is 1"),
        ({"shuffle": None}, "'shuffle' must be true or false"),
    ],
)
def test_a_state_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Cursor.from_state({**STATE, **change}, 10)


@pytest.mark.parametrize("name", STATE)
def test_a_state_with_a_part_missing_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}' must be"):
        Cursor.from_state({key: value for key, value in STATE.items() if key != name}, 10)
