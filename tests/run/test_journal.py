from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.errors import CheckpointError
from morphing_trainer.reporting.records import Record
from morphing_trainer.run.journal import Event, Journal, effective, read_journal, record_from, records


def record(index: int, step: int = 0, loss: Any = None, before: Any = 3.0) -> Record:
    return Record(
        index=index,
        operation="stack_layers",
        value=[0, 0, 1],
        desc="é\u2028",
        trigger="step 4",
        step=step,
        tokens=10,
        before={"layers": 2, "loss": before},
        after={"layers": 3, "loss": loss},
        moments={"carried": 1, "scaled": 0, "newborn": 2, "dropped": 0},
        seconds=0.5,
        preserving=True,
        multipliers={"lr_multiplier": 1.0},
    )


def operation(index: int, step: int) -> Event:
    return {"event": "operation", "step": step, "index": index, "record": record(index, step).to_dict()}


def evaluation(index: int, step: int, loss: float = 2.0) -> Event:
    return {"event": "evaluation", "step": step, "index": index, "loss": loss}


def resume(step: int, done: int) -> Event:
    return {"event": "resume", "step": step, "done": done}


def event(name: str, step: int) -> Event:
    return {"event": name, "step": step}


def short(events: list[Event]) -> list[tuple[Any, ...]]:
    return [(found["event"], found["step"], found.get("index")) for found in events]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "journal.jsonl")
    journal.write("start", 0, settings={"lr": 1e-3}, seed=3)
    journal.write("operation", 4, index=0, record=record(0, 4).to_dict())
    assert journal.path is not None
    start, applied = read_journal(journal.path)
    assert (start["event"], start["step"], start["settings"], start["seed"]) == ("start", 0, {"lr": 1e-3}, 3)
    assert record_from(applied["record"]) == record(0, 4)
    assert start["time"].endswith("+00:00")


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    Journal(None).write("start", 0)
    assert list(tmp_path.iterdir()) == []


def test_losses_that_are_no_numbers_survive_as_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for index, loss in enumerate((math.nan, math.inf, -math.inf)):
        Journal(path).write("operation", index, index=index, record=record(index, index, before=loss).to_dict())
        Journal(path).write("evaluation", index, index=index, loss=loss)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    events = read_journal(path)
    for _ in range(2):  # reading changes nothing
        found = [(entry.before["loss"], entry.after["loss"]) for entry in records(events)]
        assert repr(found) == "[(nan, nan), (inf, inf), (-inf, -inf)]"


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).write("start", 0)
    whole = path.read_bytes()
    Journal(path).write("end", 9, loss=1.0)
    text = path.read_bytes()
    for end in range(len(whole), len(text) - 1):
        path.write_bytes(text[:end])
        assert short(read_journal(path)) == [("start", 0, None)]


def test_the_journal_goes_on_after_a_cut_line(tmp_path: Path) -> None:
    """Else the next event would stand in the cut line, and no later resume could read the journal."""
    path = tmp_path / "journal.jsonl"
    for name, step in (("start", 0), ("operation", 4)):
        Journal(path).write(name, step)
    text = path.read_bytes()
    start = text.index(b"\n") + 1
    for end in range(start, len(text) + 1):
        path.write_bytes(text[:end])
        Journal(path).write("resume", 2)
        Journal(path).write("end", 9)
        whole = end >= len(text) - 1  # all but its line end
        expected = ["start", *(["operation"] if whole else []), "resume", "end"]
        assert [found["event"] for found in read_journal(path)] == expected, text[start:end]


@pytest.mark.parametrize("line", ["{", "5", "[]", '{"step": 1}', '{"event": 3}', "\x00"])
def test_another_broken_line_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f'{{"event": "start", "step": 0}}\n{line}\n{{"event": "end", "step": 1}}\n')
    with pytest.raises(CheckpointError, match=r"journal\.jsonl:2: is not a journal line"):
        read_journal(path)


def test_without_a_resume_everything_counts() -> None:
    events = [event("start", 0), operation(0, 5), evaluation(0, 10), event("end", 20)]
    assert effective(events) == events


def test_a_crash_undoes_what_came_after_the_checkpoint() -> None:
    kept = [event("start", 0), operation(0, 5), evaluation(0, 8)]
    lost = [operation(1, 12), evaluation(1, 15), event("failed", 16)]
    again = [resume(10, 1), operation(1, 13), evaluation(1, 15, 4.0), event("end", 20)]
    found = effective([*kept, *lost, *again])
    assert short(found) == short([*kept, event("failed", 16), *again])
    assert [(entry.index, entry.step, entry.after["loss"]) for entry in records(found)] == [(0, 5, None), (1, 13, None)]


def test_the_evaluation_after_an_operation_can_be_lost_alone() -> None:
    (entry,) = records(effective([operation(0, 5), evaluation(0, 12), resume(10, 1)]))
    assert entry.after["loss"] is None


@pytest.mark.parametrize(("done", "indices"), [(1, [0]), (2, [0, 1]), (0, [])])
def test_at_the_checkpoint_s_own_step_the_count_decides(done: int, indices: list[int]) -> None:
    """An operation and a checkpoint may share a step, in either order."""
    events = [operation(0, 10), evaluation(0, 10), operation(1, 10), evaluation(1, 10), resume(10, done)]
    found = effective(events)
    assert [entry["index"] for entry in found if entry["event"] == "operation"] == indices
    assert [entry["index"] for entry in found if entry["event"] == "evaluation"] == indices


def test_crash_after_crash_back_and_further_back() -> None:
    history = [
        event("start", 0),
        operation(0, 5),
        event("interrupted", 9),
        resume(9, 1),
        operation(1, 11),
        resume(10, 1),
        operation(1, 12),
        event("end", 20),
        resume(4, 0),
        operation(0, 6),
        event("override", 6),
    ]
    found = effective(history)
    assert [(entry["event"], entry["step"]) for entry in found] == [
        ("start", 0),
        ("resume", 9),
        ("resume", 10),
        ("resume", 4),
        ("operation", 6),
        ("override", 6),
    ]
    assert [(entry.index, entry.step) for entry in records(found)] == [(0, 6)]


def back(name: str, step: int, done: int, events: Any, **facts: Any) -> Event:
    return {"event": name, "step": step, "done": done, "events": events, **facts}


def test_what_the_checkpoint_knew_counts_and_nothing_after_it() -> None:
    """Of the same step, too: the evaluation behind the save comes again."""
    known = [event("start", 0), operation(0, 8)]
    lost = [evaluation(0, 8, 3.0), event("analysis", 8), {**event("out_of_memory", 8), "n": 1}, {**event("stage", 8)}]
    again = [back("resume", 8, 1, len(known)), evaluation(0, 8, 4.0), event("end", 20)]
    assert effective([*known, *lost, event("interrupted", 8), event("failed", 9), *again]) == [
        *known,
        event("interrupted", 8),
        event("failed", 9),
        *again,
    ]


def test_a_rolling_back_that_came_to_no_checkpoint() -> None:
    """The run was killed before it had saved that, and goes on from a checkpoint in which the operation stands."""
    known = [event("start", 0), operation(0, 4), evaluation(0, 6)]
    undone = back("rolled_back", 4, 0, 1, index=0)
    assert effective([*known, undone]) == [known[0], undone]
    resumed = back("resume", 6, 1, 3)
    assert effective([*known, undone, resumed]) == [*known, resumed]
    again = {**undone, "loss": 5.0}
    assert effective([*known, undone, resumed, again]) == [known[0], resumed, again]


def test_going_on_from_further_and_further_back() -> None:
    history = [event("start", 0)]
    for step in (9, 7, 5):
        history += [operation(0, step), event("end", step), back("resume", step - 1, 0, 1)]
    found = effective(history)
    assert [entry["event"] for entry in found] == ["start", "resume", "resume", "resume"]
    history += [operation(0, 4), back("resume", 8, 1, 2)]  # and from the first of them once more
    assert short(effective(history))[:2] == [("start", 0, None), ("operation", 9, 0)]
    assert [entry["event"] for entry in effective(history)].count("operation") == 1


@pytest.mark.parametrize("number", [None, -1, 99, "2", 1.5, [3]])
def test_a_number_of_events_that_is_none(number: Any) -> None:
    """Of an older version, or damaged: steps and operations decide."""
    found = effective([event("start", 0), operation(0, 5), operation(1, 12), back("resume", 10, 1, number)])
    assert [entry["event"] for entry in found] == ["start", "operation", "resume"]


def test_noted_twice_by_an_older_version() -> None:
    """The last one counts, where it stands."""
    twice = [
        (evaluation(0, 8, 3.0), evaluation(0, 8, 4.0)),
        ({**event("returned", 4), "done": 0, "bad": 6, "times": 1}, {**event("returned", 4), "done": 0, "bad": 6}),
        ({**event("analysis", 8), "rank_use": 0.5}, {**event("analysis", 8), "rank_use": 0.25}),
        ({**event("end", 8), "loss": 3.0}, {**event("end", 8), "loss": 4.0}),
    ]
    for first, last in twice:
        assert effective([event("start", 0), first, resume(8, 1), last]) == [event("start", 0), resume(8, 1), last]


def test_what_differs_is_told_apart() -> None:
    events = [
        evaluation(0, 8),
        evaluation(1, 8),
        evaluation(1, 9),
        *({**event("out_of_memory", 8), "before": size} for size in (8, 4)),
        *(event("emergency", 8) for _ in range(2)),
    ]
    assert effective(events) == events


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"index": 0},
        {**record(0).to_dict(), "more": 1},
        {**record(0).to_dict(), "before": {"loss": "low"}},
        {**record(0).to_dict(), "after": 3},
        {**record(0).to_dict(), "after": {"layers": "3"}},
        {**record(0).to_dict(), "before": {"layers": None}},
        {**record(0).to_dict(), "step": None},
        {**record(0).to_dict(), "seconds": True},
        {**record(0).to_dict(), "moments": {"carried": []}},
        {**record(0).to_dict(), "trigger": 4},
    ],
)
def test_a_malformed_record_is_an_error(data: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="not one that this library wrote"):
        record_from(data)
