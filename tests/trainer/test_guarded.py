"""Guarded operations in real runs: they close, or the run is as if they had never been, wherever it is killed."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import CheckpointError, GuardError, ScheduleError
from morphing_trainer.run.bundle import read_bundle
from morphing_trainer.run.history import read_history
from morphing_trainer.run.journal import effective, read_journal, records
from morphing_trainer.run.signals import RunInterrupted
from tests.support import VOCAB, Tokens, arguments, losses, same, staged_data, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, applied, entry, evaluations, optimizer_state, rates
from tests.trainer.program import Job, complete, killed_repeatedly

HARSH = {"max_loss_increase": 0.0, "within_steps": 4}
RUN: dict[str, Any] = {"max_steps": 16, "eval_steps": 3, "save_total_limit": 100, "lr_scheduler_type": "cosine"}
SPARSE: dict[str, Any] = {"logging_steps": 5, "save_steps": 100}
FIRST = entry("change_lr", 1.1, 2)
LAST = entry("widen_mlp", 1.25, 2, noise=0.1)


def guarded(name: str = "change_lr", value: Any = 60.0, wait: int = 3, **options: Any) -> dict[str, Any]:
    return entry(name, value, wait, **{"guard": HARSH, **options})


class Others(Tokens):
    """Tokens that no training sample holds: the better the model becomes, the worse it does on these."""

    def __init__(self, count: int = 20) -> None:
        super().__init__(count, vocab=VOCAB // 2, seed=2)
        self.tokens += VOCAB // 2


def make(folder: Path, schedule: Any, *, fails: bool = True, **changes: Any) -> MorphingTrainer:
    """Args: fails: the evaluation loss only rises, so that a guard that allows no increase fails."""
    data = Tokens(61, vocab=VOCAB // 2)
    options = {"data": data, "save_strategy": "steps", "save_steps": 1, **RUN, **changes}
    made = trainer(folder, schedule, options.pop("model", None) or tiny_model(**DROPOUT), **options)
    if fails:
        made.eval_dataset = Others()
    return made


def run(folder: Path, schedule: Any, resume: Any = None, **changes: Any) -> MorphingTrainer:
    made = make(folder, schedule, **changes)
    made.train(resume)
    return made


def without(schedule: list[dict[str, Any]], index: int, **waits: int) -> list[dict[str, Any]]:
    """The schedule with one entry that is not done at all; the next one waits for it all the same."""
    rest = [{**item} for item in schedule]
    rest[index] = {**rest[index], "completed": True, "guard": None}
    if index + 1 < len(rest):
        rest[index + 1]["max_wait_iters"] += rest[index]["max_wait_iters"]
    return rest


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder / "journal.jsonl") if event["event"] in names]


def assert_same_run(left: MorphingTrainer, right: MorphingTrainer) -> None:
    assert left.state.global_step == right.state.global_step
    assert same(weights(left), weights(right))
    assert same(optimizer_state(left), optimizer_state(right))
    for read in (losses, rates, evaluations, applied):
        assert read(left) == read(right), read


OPERATIONS = [
    guarded(),
    guarded("stack_layers", 2, guard={**HARSH, "within_steps": 1}),
    guarded("set_batch_size", 1, guard={**HARSH, "within_steps": 1}),
    guarded("reset_lr_schedule", None, guard={**HARSH, "within_steps": 1}),
    guarded("set_attn_lora_rank", 2, guard={**HARSH, "within_steps": 1}),
    guarded("freeze_layer", "mlp.*", guard={**HARSH, "within_steps": 1}),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda item: item["name"])
def test_rolled_back_to_the_bit(tmp_path: Path, operation: dict[str, Any]) -> None:
    schedule = [FIRST, operation, LAST]
    options = {"gradient_accumulation_steps": 2, "max_steps": 9}
    made = run(tmp_path / "run", schedule, **options)
    plain = run(tmp_path / "plain", without(schedule, 1), **options)
    (event,) = events(tmp_path / "run", "rolled_back")
    within = operation["guard"]["within_steps"]
    assert (event["operation"], event["step"], event["until"]) == (operation["name"], 5, min(5 + within, 9))
    assert event["loss"] > event["before"] == event["limit"]
    assert applied(made) == [("change_lr", 2), ("widen_mlp", 7)]
    assert_same_run(made, plain)
    state = read_bundle(tmp_path / "run" / "checkpoint-9").state
    assert [e.get("rolled_back", False) for e in state["executed"]] == [False, True, False]
    assert state["guard"] is None


def test_without_the_rollback_it_would_differ(tmp_path: Path) -> None:
    """Control: the same operation under a guard that closes well changes the run."""
    loose = guarded(guard={"max_loss_increase": 100, "within_steps": 4})
    made = run(tmp_path / "run", [FIRST, loose, LAST], max_steps=9)
    plain = run(tmp_path / "plain", without([FIRST, loose, LAST], 1), max_steps=9)
    assert not events(tmp_path / "run", "rolled_back")
    assert not same(weights(made), weights(plain))


def test_a_guard_that_closes_well_changes_nothing(tmp_path: Path) -> None:
    """Not the weights, not the dropout: the evaluations made for it draw no random number and fire no trigger."""
    loose = guarded("stack_layers", 2, guard={"max_loss_increase": 100, "within_steps": 2})
    schedule = [entry("change_lr", 1.1, 1), {**loose, "max_wait_iters": 3}, entry("widen_mlp", 1.25, 3)]
    plain = [{**item, "guard": None} for item in schedule]
    made = run(tmp_path / "run", schedule, save_strategy="no", max_steps=10, eval_steps=5)
    other = run(tmp_path / "plain", plain, save_strategy="no", max_steps=10, eval_steps=5)
    assert same(weights(made), weights(other)) and same(optimizer_state(made), optimizer_state(other))
    assert applied(made) == applied(other) == [("change_lr", 1), ("stack_layers", 4), ("widen_mlp", 7)]
    # Right before it, and at step 5 anyway.
    assert [step for step, _ in evaluations(made)] == [4, 5, 10]
    (event,) = events(tmp_path / "run", "guard_closed")
    assert (event["step"], event["index"]) == (5, 1)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4"]


def test_the_last_evaluation_is_made_at_its_step(tmp_path: Path) -> None:
    loose = guarded(guard={"max_loss_increase": 100, "within_steps": 2})
    made = run(tmp_path, [loose, entry("change_lr", 0.5, 1)], eval_strategy="no", save_strategy="no", max_steps=8)
    assert [step for step, _ in evaluations(made)] == [3, 5]
    # The next one waits from the guarded operation on, and is held back until the guard is closed.
    assert applied(made) == [("change_lr", 3), ("change_lr", 5)]


def test_held_back(tmp_path: Path) -> None:
    """What becomes due while a guard is open waits for it, and then counts from the operation."""
    schedule = [guarded(wait=2), entry("change_lr", 0.9, 1), entry("change_lr", 0.8, 1)]
    made = run(tmp_path, schedule, max_steps=8, eval_steps=100)
    assert [(event["step"], event["until"]) for event in events(tmp_path, "rolled_back")] == [(2, 6)]
    assert applied(made) == [("change_lr", 3), ("change_lr", 4)]


@pytest.mark.parametrize("wait", [0, 1])
def test_before_the_first_step_and_one_after_the_other(tmp_path: Path, wait: int) -> None:
    schedule = [guarded(wait=wait), guarded("widen_mlp", 2, wait=wait), guarded("stack_layers", 2, wait=wait)]
    made = run(tmp_path / "run", schedule, max_steps=8, save_strategy="no")
    plain = run(tmp_path / "plain", [], max_steps=8, save_strategy="no")
    begun = [event["step"] for event in events(tmp_path / "run", "rolled_back")]
    assert begun == ([0, 1, 2] if wait == 0 else [1, 2, 3])
    assert same(weights(made), weights(plain)) and same(optimizer_state(made), optimizer_state(plain))


@pytest.mark.parametrize("last", [1, 3])
def test_the_end_of_the_run_decides(tmp_path: Path, last: int) -> None:
    schedule = [guarded(wait=7 - last)]
    made = run(tmp_path / "run", schedule, max_steps=7, eval_strategy="no", save_strategy="no")
    plain = run(tmp_path / "plain", [], max_steps=7, save_strategy="no", eval_strategy="no")
    (event,) = events(tmp_path / "run", "rolled_back")
    assert event["until"] == 7
    assert same(weights(made), weights(plain))
    assert losses(made) == losses(plain)


def test_the_end_of_a_stage_decides(tmp_path: Path) -> None:
    """Losses of two stages cannot be compared."""
    late = {"when": {"at_step": 9}, "guard": {"max_loss_increase": 0.0, "within_steps": 100}}
    schedule = [entry("change_lr", 1e4, **late), entry("change_lr", 0.5, 1)]
    made = trainer(tmp_path, schedule, stages=staged_data(), eval_steps=100)
    made.train()
    (event,) = events(tmp_path, "rolled_back")
    assert made.session is not None
    assert event["until"] == made.session.state.stages["texts"] == 12
    assert applied(made) == [("change_lr", 10)]


EVERY_STEP = [pytest.param(step, marks=[pytest.mark.long] * (step not in (6, 9, 11))) for step in range(1, 13)]
"""In the order that steps are made in: from the tenth on the run has gone back to step 5."""


@pytest.mark.parametrize("step", EVERY_STEP)
def test_killed_at_any_step(tmp_path_factory: pytest.TempPathFactory, whole: MorphingTrainer, step: int) -> None:
    """What a run leaves behind that is killed at a step: all checkpoints of the way that it was on."""
    folder = tmp_path_factory.mktemp("killed")
    killed = make(folder / "run", SWEEP, callbacks=[Dies(step)])
    with pytest.raises(Killed):
        killed.train()
    made = run(folder / "run", SWEEP, "auto")
    assert_same_run(made, whole)
    happened = effective(read_journal(folder / "run" / "journal.jsonl"))
    assert [record.operation for record in records(happened)] == ["change_lr", "widen_mlp"]
    assert [event["index"] for event in happened if event["event"] == "rolled_back"] == [1]


SWEEP = [FIRST, guarded("stack_layers", 2), LAST]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    return run(tmp_path_factory.mktemp("whole") / "run", SWEEP)


class Killed(BaseException):
    """As sudden as an exception can be."""


class Dies(TrainerCallback):
    """Ends the run in the middle of the so many-th step that is made, steps that are undone later included."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


def test_what_it_goes_back_to_is_never_deleted(tmp_path: Path) -> None:
    slow = guarded(guard={"max_loss_increase": 0.0, "within_steps": 8})
    made = make(tmp_path, [slow], save_total_limit=2, callbacks=[Watches(tmp_path)], max_steps=14)
    made.train()
    watches = next(each for each in made.callback_handler.callbacks if isinstance(each, Watches))
    assert watches.seen[8] == ["checkpoint-8", "checkpoint-7", "checkpoint-3"]
    assert watches.first_after == ["checkpoint-3", "checkpoint-2"] or watches.first_after[0] == "checkpoint-3"
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-14", "checkpoint-13"]


class Watches(TrainerCallback):
    """Which checkpoints there are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.first_after = folder, {}, []
        self.highest = 0

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        names = [path.name for path in checkpoints(self.folder)]
        self.seen.setdefault(state.global_step, names)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < self.highest and not self.first_after:
            self.first_after = [path.name for path in checkpoints(self.folder)]
        self.highest = max(self.highest, state.global_step)


def test_stop(tmp_path: Path) -> None:
    schedule = [FIRST, guarded(guard={**HARSH, "otherwise": "stop"}), LAST]
    made = make(tmp_path, schedule)
    with pytest.raises(GuardError) as caught:
        made.train()
    said = str(caught.value)
    assert "entry 2 (change_lr), guard: change_lr of step 5 has not worked out by step 9" in said
    assert f"{tmp_path / 'checkpoint-5'} holds the state from before" in said
    assert checkpoints(tmp_path)[0].name == "checkpoint-5"
    assert read_bundle(tmp_path / "checkpoint-5").state["executed"][-1]["index"] == 0
    # As the message says: without it the run goes on from there.
    again = run(tmp_path, without(schedule, 1), True)
    plain = run(tmp_path.with_name("plain"), without(schedule, 1))
    assert same(weights(again), weights(plain)) and same(optimizer_state(again), optimizer_state(plain))


def test_a_model_that_dies_under_a_guard(tmp_path: Path) -> None:
    """A step that is not finite need not be waited for: the operation has not worked out."""
    deadly = entry("set_lr", 1e38, 3, guard={"max_loss_increase": 0.1, "within_steps": 10})
    options = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "fails": False, "max_steps": 9}
    made = run(tmp_path / "run", [deadly, entry("change_lr", 0.9, 2)], **options)
    plain = run(tmp_path / "plain", [{**deadly, "completed": True}, entry("change_lr", 0.9, 5)], **options)
    (event,) = events(tmp_path / "run", "rolled_back")
    assert "NaN or infinite" in event["reason"]
    assert event["until"] < 13
    assert_same_run(made, plain)


def test_asked_to_stop_while_a_guard_is_open(tmp_path: Path, whole: MorphingTrainer) -> None:
    """It is saved as it is, guard and all, and goes on with it."""

    class Stops(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 6:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunInterrupted):
        run(tmp_path, SWEEP, callbacks=[Stops()], save_steps=100)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-7", "checkpoint-5"]
    assert read_bundle(tmp_path / "checkpoint-7").state["guard"]["checkpoint"] == "checkpoint-5"
    assert_same_run(run(tmp_path, SWEEP, True), whole)


def test_asked_to_stop_while_it_goes_back(tmp_path: Path, whole: MorphingTrainer) -> None:
    class Stops(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(RunInterrupted):
        run(tmp_path, SWEEP, callbacks=[Stops()])
    assert checkpoints(tmp_path)[0].name == "checkpoint-6"
    assert_same_run(run(tmp_path, SWEEP, True), whole)


def test_log_lines_and_statistics(tmp_path: Path) -> None:
    """What was undone is in none of them."""
    made = run(tmp_path / "run", [guarded()], max_steps=10)
    run(tmp_path / "plain", [], max_steps=10)
    lines = read_history(tmp_path / "run" / "stats" / "history.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 11))
    assert [line["step"] for line in made.state.log_history if "loss" in line] == steps
    read = [(tmp_path / name / "stats" / "overall.json").read_text() for name in ("run", "plain")]
    kept = [[line for line in text.splitlines() if '"loss"' in line or '"steps"' in line] for text in read]
    assert kept[0] == kept[1]


def test_the_cost_of_what_was_undone_is_not_counted(tmp_path: Path) -> None:
    """Not even that of steps which no log line had told of when the run went back."""
    found = [
        [line["total_flos"] for line in run(tmp_path / name, schedule, max_steps=10, **SPARSE).state.log_history]
        for name, schedule in (("run", [guarded()]), ("plain", []))
    ]
    assert len(events(tmp_path / "run", "rolled_back")) == 1
    assert found[0][1:] == found[1]  # the first line of a run with a schedule is the size it begins with


def test_early_stopping_looks_at_what_stays(tmp_path: Path) -> None:
    """An operation that has not worked out does not end the run: it is undone, and the patience with it."""
    slow = guarded(wait=1, guard={"max_loss_increase": 0.0, "within_steps": 100})
    options = {"early_stopping_patience": 2, "eval_steps": 1, "fails": False, "max_steps": 8, "learning_rate": 1e-3}
    made = run(tmp_path / "run", [{**slow, "value": 1e4}], **options)
    plain = run(tmp_path / "plain", [], **options)
    (event,) = events(tmp_path / "run", "rolled_back")
    assert event["until"] == 3
    assert made.state.global_step == plain.state.global_step
    assert made.state.best_global_step == plain.state.best_global_step
    assert same(weights(made), weights(plain))
    assert Path(str(made.state.best_model_checkpoint)).is_dir()


def test_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, eval_strategy="no", eval_steps=None)
    with pytest.raises(ScheduleError, match=r"entry 2 \(change_lr\), guard: there is no evaluation data"):
        MorphingTrainer(tiny_model(), args, train_dataset=Tokens(), schedule=[FIRST, guarded()])
    needs = [guarded("stack_layers", 2), entry("freeze_layer", "mlp.3", 2)]
    with pytest.raises(ScheduleError, match=r"entry 2 \(freeze_layer\).*if the guarded stack_layers before it is"):
        make(tmp_path, needs)
    make(tmp_path, [guarded("stack_layers", 2, guard={**HARSH, "otherwise": "stop"}), needs[1]])


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_resumed_without_what_it_may_go_back_to(tmp_path: Path, whole: MorphingTrainer, harm: str) -> None:
    """By path that is an error; `True` takes a checkpoint from before the guard."""
    with pytest.raises(Killed):
        run(tmp_path, SWEEP, callbacks=[Dies(7)])
    if harm == "gone":
        shutil.rmtree(tmp_path / "checkpoint-5")
    else:
        (tmp_path / "checkpoint-5" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"checkpoint-5.*{harm}|{harm}.*checkpoint-5"):
        make(tmp_path, SWEEP).train(str(tmp_path / "checkpoint-7"))
    assert_same_run(run(tmp_path, SWEEP, True), whole)


def test_resumed_in_another_folder(tmp_path: Path, whole: MorphingTrainer) -> None:
    """What it goes back to lies where the checkpoint lies; nothing is deleted there."""
    with pytest.raises(Killed):
        run(tmp_path / "old", SWEEP, callbacks=[Dies(7)])
    before = [path.name for path in checkpoints(tmp_path / "old")]
    made = run(tmp_path / "new", SWEEP, str(tmp_path / "old" / "checkpoint-7"))
    assert_same_run(made, whole)
    assert [path.name for path in checkpoints(tmp_path / "old")] == before
    assert checkpoints(tmp_path / "new")[-1].name == "checkpoint-5"


def test_resumed_in_another_folder_and_killed_there(tmp_path: Path, whole: MorphingTrainer) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "old", SWEEP, callbacks=[Dies(7)])
    with pytest.raises(Killed):
        run(tmp_path / "new", SWEEP, str(tmp_path / "old" / "checkpoint-7"), callbacks=[Dies(8)])
    shutil.rmtree(tmp_path / "old")
    assert_same_run(run(tmp_path / "new", SWEEP, True), whole)


def test_a_repeated_guard(tmp_path: Path) -> None:
    """Every round is tried anew."""
    made = run(tmp_path / "run", [{**guarded("widen_mlp", 2, wait=2), "repeat": "end"}], max_steps=7)
    plain = run(tmp_path / "plain", [], max_steps=7)
    assert [event["index"] for event in events(tmp_path / "run", "rolled_back")] == [0, 1, 2]
    assert same(weights(made), weights(plain))
    assert not math.isnan(losses(made)[-1]) and torch.equal(torch.tensor(losses(made)), torch.tensor(losses(plain)))


DIVERGES = [
    entry("change_lr", 2000.0, 5, guard={"max_loss_increase": 0.2, "within_steps": 6}),
    entry("widen_mlp", 2, 4),
]


def job(folder: Path, schedule: Any = DIVERGES, **changes: Any) -> Job:
    options = {"max_steps": 20, "save_strategy": "steps", "save_steps": 2, **changes.pop("options", {})}
    return Job(folder, schedule, dropout=0.1, options=options, **changes)


def test_killed_in_processes(tmp_path: Path) -> None:
    """SIGKILL at any moment: in steps, in saving, in going back."""
    whole = complete(job(tmp_path / "whole"))
    assert len(events(whole.folder, "rolled_back")) == 1
    killed = job(tmp_path / "killed", resume="if possible", pause=0.03)
    killed_repeatedly(killed, [0.1, 0.2, 0.05, 0.0])
    complete(killed)
    assert same(killed.weights(), whole.weights())


def test_two_ranks_go_back_together(tmp_path: Path) -> None:
    options = {"per_device_train_batch_size": 2, "max_steps": 12}
    plain = without(DIVERGES, 0)
    pair, other = (
        complete(job(tmp_path / name, schedule, options=options), 2)
        for name, schedule in (("a", DIVERGES), ("b", plain))
    )
    assert same(pair.weights(0), pair.weights(1))
    assert len(events(pair.folder, "rolled_back")) == 1
    assert same(pair.weights(), other.weights()) and pair.losses() == other.losses()


def test_saved_beside_the_training(tmp_path: Path, whole: MorphingTrainer) -> None:
    """The state from before is on the disk before the operation, however checkpoints are written."""
    assert_same_run(run(tmp_path, SWEEP, async_save=True), whole)


def told(folder: Path) -> list[str]:
    """The run's log, without times and levels."""
    return [line.split(" ", 2)[2] for line in (folder / "logs" / "train.log").read_text().splitlines()]


def test_the_summary_tells_what_was_undone(tmp_path: Path) -> None:
    """Also of a run that is resumed after it, and once only."""
    run(tmp_path, [FIRST, guarded(), LAST], max_steps=10)
    lines = told(tmp_path)
    assert any(line.startswith("2 operations applied") for line in lines)
    at = lines.index("1 operation undone by its guard")
    assert lines[at + 1].startswith("step 5: change_lr: evaluation loss ") and "at step 9, at most" in lines[at + 1]
    (warning,) = [line for line in lines if "has not worked out" in line]
    assert "has not worked out by step 9. The evaluation loss was " in warning and " now; the guard allows " in warning
    (tmp_path / "logs" / "train.log").unlink()
    run(tmp_path, [FIRST, guarded(), LAST], str(tmp_path / "checkpoint-8"), max_steps=10)
    assert told(tmp_path).count("1 operation undone by its guard") == 1
    (tmp_path / "logs" / "train.log").unlink()
    run(tmp_path, [FIRST], str(tmp_path / "checkpoint-4"), max_steps=6)
    assert not any("undone" in line for line in told(tmp_path))


def test_a_guard_that_closes_well_is_told(tmp_path: Path) -> None:
    run(tmp_path, [guarded(guard={"max_loss_increase": 100, "within_steps": 4})], max_steps=6)
    lines = told(tmp_path)
    assert any("change_lr of step 3 has worked out: evaluation loss " in line for line in lines)
    assert not any("undone" in line for line in lines)
