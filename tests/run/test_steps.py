from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from morphing_trainer.data.cursor import Cursor, CursorBatchSampler
from morphing_trainer.run.steps import batch_of, total_steps
from morphing_trainer.settings import Settings


def chosen(batch: int, accum: int) -> Settings:
    return Settings(1e-3, batch, accum, 0, None, None)


def epoch_steps(cursor: Cursor, settings: Settings, world: int, drop_last: bool, until: int | None = None) -> int:
    """Optimizer steps made by really reading the rest of the epoch (or `until` that position)."""
    sampler = CursorBatchSampler(cursor, batch_of(settings, world, drop_last))
    steps = read = 0
    micro = len(sampler)
    while read < micro and (until is None or cursor.position < until):
        count = min(settings.grad_accum, micro - read)
        read += count
        cursor.advance_to(sampler.layout.position_after(read))
        steps += 1
    return steps


_cases = st.fixed_dictionaries(
    {
        "length": st.integers(1, 90),
        "batch": st.integers(1, 9),
        "accum": st.integers(1, 4),
        "world": st.integers(1, 3),
        "drop_last": st.booleans(),
    }
)


@given(_cases, st.integers(0, 90))
def test_a_layout_has_as_many_steps_as_reading_takes(case: dict[str, int], position: int) -> None:
    settings = chosen(case["batch"], case["accum"])
    cursor = Cursor(case["length"], 0, position=min(position, case["length"]))
    expected = cursor.layout(batch_of(settings, case["world"], bool(case["drop_last"]))).steps
    assert epoch_steps(cursor, settings, case["world"], bool(case["drop_last"])) == expected


@given(_cases, st.integers(0, 4), st.integers(0, 4), st.integers(0, 90), st.integers(0, 50))
def test_whole_epochs_end_when_all_is_read(
    case: dict[str, int], epochs: int, epoch: int, position: int, step: int
) -> None:
    """From anywhere, with any settings: as many steps as reading the rest of this epoch and all later ones takes."""
    settings, world, drop_last = chosen(case["batch"], case["accum"]), case["world"], bool(case["drop_last"])
    cursor = Cursor(case["length"], 0, epoch=epoch, position=min(position, case["length"]))
    predicted = step + total_steps(epochs, cursor, batch_of(settings, world, drop_last))
    while cursor.epoch < epochs:
        step += epoch_steps(cursor, settings, world, drop_last)
        cursor.next_epoch()
    assert predicted == step


@given(_cases, st.floats(0.01, 5))
@example({"length": 10, "batch": 2, "accum": 1, "world": 1, "drop_last": 0}, 2.2)  # 2.2 * 5 is 11, not a bit more
def test_at_the_start_it_is_the_number_of_the_plain_trainer(case: dict[str, int], epochs: float) -> None:
    settings, world, drop_last = chosen(case["batch"], case["accum"]), case["world"], bool(case["drop_last"])
    cursor = Cursor(case["length"], 0)
    micro = len(CursorBatchSampler(cursor, batch_of(settings, world, drop_last)))
    per_epoch = micro // settings.grad_accum + int(micro % settings.grad_accum > 0)
    total = total_steps(epochs, cursor, batch_of(settings, world, drop_last))
    assert total == math.ceil(epochs * per_epoch)
    # The same number seen from the start of any later epoch.
    for epoch in range(math.floor(epochs) + 1):
        later = Cursor(case["length"], 0, epoch=epoch)
        assert epoch * per_epoch + total_steps(epochs, later, batch_of(settings, world, drop_last)) == total


@given(_cases, st.floats(0.01, 0.99), st.integers(1, 90))
def test_inside_a_last_fraction_of_an_epoch_samples_count(case: dict[str, int], fraction: float, position: int) -> None:
    settings, world = chosen(case["batch"], case["accum"]), case["world"]
    cursor = Cursor(case["length"], 0, position=min(position, case["length"]))
    predicted = 7 + total_steps(fraction, cursor, batch_of(settings, world, False))
    until = math.ceil(fraction * case["length"])
    assert predicted == 7 + epoch_steps(cursor, settings, world, False, until)


def test_a_run_that_is_over_needs_no_more_steps() -> None:
    settings = chosen(4, 1)
    assert 5 + total_steps(1, Cursor(20, 0, epoch=1), batch_of(settings, 1, False)) == 5
    assert 8 + total_steps(1, Cursor(20, 0, epoch=2, position=3), batch_of(settings, 1, False)) == 8
    assert 9 + total_steps(1.5, Cursor(20, 0, epoch=1, position=16), batch_of(settings, 1, False)) == 9


def test_a_change_of_the_batch_in_the_middle() -> None:
    cursor = Cursor(100, 0)
    assert total_steps(2, cursor, batch_of(chosen(10, 1), 1, False)) == 20
    cursor.advance_to(30)
    assert 3 + total_steps(2, cursor, batch_of(chosen(20, 1), 1, False)) == 3 + 4 + 5
    assert 3 + total_steps(2, cursor, batch_of(chosen(20, 1), 1, True)) == 3 + 3 + 5
    assert 3 + total_steps(2, cursor, batch_of(chosen(10, 4), 2, False)) == 3 + 1 + 2
