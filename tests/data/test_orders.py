"""Orders of an epoch: nothing lost, nothing twice, texts in one piece, shares kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morphing_trainer.data.layout import Layout
from morphing_trainer.data.mixture import Mixture
from morphing_trainer.data.orders import Mixed, Single, Texts, order_of, permutation
from morphing_trainer.data.samples import Blocks
from morphing_trainer.errors import DataError

sizes_of_texts = st.lists(st.integers(1, 6), min_size=1, max_size=30)


def texts(sizes: list[int]) -> Texts:
    return Texts(np.concatenate([[0], np.cumsum(sizes)[:-1]]), sum(sizes))


@given(sizes_of_texts, st.integers(0, 2**32), st.integers(0, 3), st.booleans())
def test_texts_are_read_whole_and_once(sizes: list[int], seed: int, epoch: int, shuffle: bool) -> None:
    order = texts(sizes)
    indices, begins = order.arrange(seed, epoch, shuffle)
    assert begins is not None
    assert sorted(indices) == list(range(sum(sizes)))
    pieces = np.split(indices, begins[1:])
    assert sorted(int(piece[0]) for piece in pieces) == order.starts.tolist()
    for piece in pieces:  # consecutive samples of one text, from its first to its last
        assert piece.tolist() == list(range(piece[0], piece[0] + len(piece)))
    assert len(pieces) == len(sizes)
    if not shuffle:
        assert indices.tolist() == list(range(sum(sizes)))


def test_texts_of_one_sample_are_shuffled_like_samples() -> None:
    indices, _ = texts([1] * 20).arrange(5, 2, shuffle=True)
    assert indices.tolist() == permutation(20, 5, 2).tolist()


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.2, 5)), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_a_mix_keeps_its_shares(parts: list[tuple[int, float]], seed: int, shuffle: bool) -> None:
    lengths, weights = zip(*parts, strict=True)
    try:
        mixed = Mixed([Single(length) for length in lengths], weights)
    except DataError:
        assert min(length / weight for length, weight in parts) * min(weights) < 1 + 1e-6
        return
    indices, begins = mixed.arrange(seed, 0, shuffle)
    assert begins is None
    assert len(indices) == len(mixed)
    assert len(set(indices.tolist())) == len(indices), "no sample twice in an epoch"
    ends = np.cumsum(lengths)
    drawn = np.bincount(np.searchsorted(ends, indices, side="right"), minlength=len(lengths))
    total = min(length / weight for length, weight in parts) * sum(weights)
    for count, length, weight in zip(drawn, lengths, weights, strict=True):
        exact = total * weight / sum(weights)
        assert exact - 1 < count + 1e-6 <= exact + 2e-6
        assert count <= length
    if not shuffle:  # every source in its own order
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            own = indices[(indices >= start) & (indices < end)]
            assert own.tolist() == sorted(own)


def test_a_source_that_is_larger_than_its_share_shows_other_samples_in_the_next_epoch() -> None:
    mixed = Mixed([Single(10), Single(1000)], [1, 1])
    first, second = (set(mixed.arrange(3, epoch, shuffle=True).indices.tolist()) for epoch in range(2))
    assert set(range(10)) < first & second
    assert len(first | second) > 25


def test_sources_of_equal_length_are_not_read_in_step() -> None:
    indices = Mixed([Single(50), Single(50)], [1, 1]).arrange(3, 0, shuffle=True).indices
    assert indices[indices < 50].tolist() != (indices[indices >= 50] - 50).tolist()


def test_texts_of_a_mix_stay_in_one_piece() -> None:
    mixed = Mixed([texts([3, 4, 5, 2]), Single(14)], [1, 1])
    indices, begins = mixed.arrange(1, 0, shuffle=True)
    assert begins is not None
    for piece in np.split(indices, begins[1:]):
        assert piece.tolist() == list(range(piece[0], piece[0] + len(piece)))
        assert len(piece) == 1 or piece[0] in (0, 3, 7, 12)


def test_a_share_too_small_for_one_sample_is_refused() -> None:
    with pytest.raises(DataError, match=r"mix: source 2 has a share of 0\.99%.*larger weight"):
        Mixed([Single(50), Single(50)], [100, 1])


def test_a_data_set_is_asked_for_its_own_order() -> None:
    blocks = [Blocks(np.full((count, 4), count, np.int32)) for count in (6, 9)]
    mixture = Mixture(blocks, [1, 2])
    assert order_of(mixture) is mixture.order
    assert len(order_of(blocks[0])) == 6
    assert len(mixture) == 15  # all samples there are; an epoch reads 4 and 9 of them
    assert (len(mixture.order), mixture.order.counts.tolist()) == (13, [4, 9])
    assert mixture[5]["input_ids"].tolist() == [6] * 4
    assert mixture[6]["input_ids"].tolist() == [9] * 4
    assert mixture.tokens_of(np.array([0, 5, 6, 14])) == 16
    assert mixture.fingerprint != Mixture(blocks, [1, 1]).fingerprint
    first = [int(sample["input_ids"][0]) for sample in mixture.in_proportion()]
    assert (first.count(6), first.count(9)) == (4, 9)
    assert len(set(first[:6])) == 2, "the first samples are mixed already"


def reading(layout: Layout) -> list[list[int]]:
    """Positions read by each optimizer step."""
    steps: list[list[int]] = []
    for number in range(len(layout)):
        if number % layout.per_step == 0:
            steps.append([])
        steps[-1] += range(*layout.span(number))
    return steps


@given(sizes_of_texts, st.integers(1, 5), st.integers(1, 3), st.integers(0, 100))
def test_a_text_never_goes_on_across_an_optimizer_step(sizes: list[int], batch: int, accum: int, at: int) -> None:
    length = sum(sizes)
    begins = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    position = int(begins[at % len(begins)])
    layout = Layout(length, position, batch * accum, batch, begins=begins)
    steps, expected = reading(layout), position
    for number, step in enumerate(steps):
        assert step[0] == expected
        assert step[0] in begins, "a step begins with a text"
        assert step == list(range(step[0], step[0] + len(step))), "what is read is in order"
        assert len(step) == batch * accum or (number == len(steps) - 1 and step[-1] == length - 1)
        # What is left of the text at the step's end is left out, and nothing else.
        expected = min((int(begin) for begin in begins if begin > step[-1]), default=length)
        assert layout.position_after(min((number + 1) * layout.per_step, len(layout))) == expected
    assert expected == length or position == length
    assert layout.steps == len(steps)


@given(
    st.integers(1, 100), st.integers(0, 100), st.integers(1, 9), st.integers(1, 30), st.booleans(), st.integers(0, 40)
)
def test_an_uneven_step_ends_with_a_smaller_micro_batch(
    length: int, position: int, batch: int, step_size: int, drop_last: bool, first: int
) -> None:
    position = min(position, length)
    layout = Layout(length, position, step_size, batch, drop_last)
    steps = reading(layout)
    read = [index for step in steps for index in step]
    assert read == list(range(position, position + len(read)))
    assert all(len(step) == step_size for step in steps[:-1])
    left = length - position
    assert len(read) == left - (left % step_size % batch if drop_last else 0)
    sizes = [end - start for start, end in map(layout.span, range(len(layout)))]
    assert all(size == batch for number, size in enumerate(sizes[:-1]) if (number + 1) % layout.per_step)
    assert layout.samples_in(first, 3) == sum(sizes[first : first + 3])
    assert layout.position_after(len(layout)) == position + len(read)
