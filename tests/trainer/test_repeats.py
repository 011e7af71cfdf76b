"""Operations that repeat, in real runs: when they fire, what they do, and that a stop among them leaves no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import MorphingTrainer
from morphing_trainer.engine import grow
from morphing_trainer.errors import CheckpointError, ConfigError, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import WidenMlp
from morphing_trainer.planning import operation_rng
from morphing_trainer.run.bundle import read_bundle
from morphing_trainer.run.journal import read_journal
from morphing_trainer.schedule import Schedule
from tests.support import Tokens, losses, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, HALVES, StopsAfter, applied, entry, evaluations, optimizer_state, rates

RESTART = [entry("reset_lr_schedule", None, 2), entry("change_lr", 0.9, 0), entry("widen_mlp", 1.25, 2, noise=0.1)]
"""One round takes 2 + 1 + 2 steps, and draws random numbers."""

SCHEDULE = [
    entry("stack_layers", 2, 1),
    {**entry("change_lr", 1.1, 2), "repeat": 2},
    {"repeat": "end", "desc": "a restart", "operations": RESTART},
]
RUN = {"max_steps": 17, "warmup_steps": 2, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "save_total_limit": 100}
STEPS = [
    *[("stack_layers", 1), ("change_lr", 3), ("change_lr", 5)],
    *[("reset_lr_schedule", 7), ("change_lr", 8), ("widen_mlp", 10)],
    *[("reset_lr_schedule", 12), ("change_lr", 13), ("widen_mlp", 15)],
]


def make(folder: Path, schedule: Any = SCHEDULE, **changes: Any) -> MorphingTrainer:
    return trainer(folder, schedule, tiny_model(**DROPOUT), data=Tokens(61), **{**RUN, **changes})


def run(folder: Path, schedule: Any = SCHEDULE, resume: Any = None, **changes: Any) -> MorphingTrainer:
    made = make(folder, schedule, **{"save_strategy": "steps", "save_steps": 1, **changes})
    made.train(resume)
    return made


def overrides(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder / "journal.jsonl") if event["event"] == "override"]


def assert_same_run(left: MorphingTrainer, right: MorphingTrainer) -> None:
    assert left.state.global_step == right.state.global_step
    assert same(weights(left), weights(right))
    assert same(optimizer_state(left), optimizer_state(right))
    for read in (losses, rates, evaluations, applied):
        assert read(left) == read(right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    return run(tmp_path_factory.mktemp("whole"))


def test_repeats_fire_at_their_steps_and_their_index_counts_on(whole: MorphingTrainer) -> None:
    assert applied(whole) == STEPS  # a third round would begin at step 17, the last
    records = whole._reports.records
    assert [record.index for record in records] == [*range(9)]
    assert [record.desc for record in records] == [None] * 3 + ["a restart"] * 6
    assert whole.model.config.n_inner == 100
    assert [(phase.operation, phase.repeats) for phase in whole.plan] == [
        (None, False),
        *[(name, False) for name, _ in STEPS[:3]],
        *[(name, True) for name, _ in STEPS[3:6]],
    ]


def test_repeats_do_what_the_operations_written_out_do(whole: MorphingTrainer, tmp_path: Path) -> None:
    once = [SCHEDULE[0], entry("change_lr", 1.1, 2), entry("change_lr", 1.1, 2)]
    assert_same_run(run(tmp_path / "written", [*once, *RESTART * 2]), whole)
    assert_same_run(run(tmp_path / "counted", [*once, {"repeat": 2, "operations": RESTART}]), whole)
    # Negative control: a round less, or other random numbers in the second round, is another run.
    assert not same(weights(run(tmp_path / "once", [*once, *RESTART])), weights(whole))
    quiet = [*RESTART, *RESTART[:2], entry("widen_mlp", 1.25, 2)]
    assert not same(weights(run(tmp_path / "quiet", [*once, *quiet])), weights(whole))


def test_every_round_draws_anew(tmp_path: Path) -> None:
    """The run, at a learning rate of 0, makes what operations 0 and 1 of its seed make, and not twice operation 0."""
    made = trainer(tmp_path, [entry("widen_mlp", 1.5, 0, noise=0.5, repeat="end")], max_steps=2, learning_rate=0.0)
    made.train()
    assert applied(made) == [("widen_mlp", 0), ("widen_mlp", 1)]
    operation = WidenMlp(value=1.5, noise=0.5)

    def grown(*indices: int) -> dict[str, torch.Tensor]:
        model: Any = tiny_model()
        for index in indices:
            groups = dict.fromkeys(dict(model.named_parameters()), 0)
            model = grow(operation, ModelSpec.of(model), model, {}, groups, operation_rng(7, index)).model
        return dict(model.named_parameters())

    assert same(weights(made), grown(0, 1))
    assert not same(weights(made), grown(0, 0))


def test_a_loss_trigger_repeats_at_every_evaluation(tmp_path: Path) -> None:
    line = entry("change_lr", 0.9, trigger_loss=float("inf"), repeat="end")
    made = trainer(tmp_path, [line], max_steps=21)
    made.train()
    assert applied(made) == [("change_lr", step) for step in (5, 10, 15, 20)]


@HALVES
def test_from_every_step(whole: MorphingTrainer, tmp_path: Path, first: int) -> None:
    for step in range(4 + first, 18, 2):
        resumed = run(tmp_path / f"from-{step}", resume=str(whole.run_folder / f"checkpoint-{step}"))
        assert_same_run(resumed, whole)
        assert overrides(resumed.run_folder) == []


def test_stopped_again_and_again_in_the_endless_part(whole: MorphingTrainer, tmp_path: Path) -> None:
    for number, stop in enumerate((9, 10, 14)):
        made = make(tmp_path, save_strategy="steps", save_steps=1, callbacks=[StopsAfter(stop)])
        made.train(True if number else None)
        assert made.state.global_step == stop
    assert_same_run(run(tmp_path, resume=True), whole)


# --- Resuming under another schedule ---

DONE = Schedule.of(SCHEDULE).to_list()[:3]


def test_what_is_ahead_may_change(whole: MorphingTrainer, tmp_path: Path) -> None:
    """In the second round: its rest is written out, and something else comes after it."""
    path = str(whole.run_folder / "checkpoint-14")
    changed = [*DONE, *RESTART, *RESTART[:2], entry("set_lr", 1e-3, 2), entry("freeze_layer", "wpe", 0, repeat="end")]
    resumed = run(tmp_path, changed, path, max_steps=18)
    assert applied(resumed) == [*STEPS[:8], ("set_lr", 15), ("freeze_layer", 16), ("freeze_layer", 17)]
    _, override = overrides(tmp_path)
    restart = [{**line, "desc": "a restart"} for line in RESTART]
    assert override["before"] == [{"repeat": "end", "operations": [restart[2], *restart[:2]]}]
    assert [list(item) for item in override["now"]] == [["name", "value", "max_wait_iters"], ["repeat", "operations"]]


def test_a_number_of_rounds_may_become_endless_and_the_other_way(whole: MorphingTrainer, tmp_path: Path) -> None:
    group = {"repeat": 2, "operations": RESTART}
    numbered = run(tmp_path / "numbered", [*DONE, group])
    assert_same_run(numbered, whole)
    for step in (9, 14):
        path = f"checkpoint-{step}"
        to_end = run(tmp_path / f"end-{step}", SCHEDULE, str(numbered.run_folder / path), max_steps=20)
        assert applied(to_end) == [*STEPS, ("reset_lr_schedule", 17), ("change_lr", 18)]
        back = run(tmp_path / f"back-{step}", [*DONE, group], str(whole.run_folder / path), max_steps=20)
        assert applied(back) == STEPS
        assert [event["name"] for event in overrides(back.run_folder)] == ["max_steps", "schedule"]


@pytest.mark.parametrize(
    ("operations", "place"),
    [
        ([RESTART[0], entry("change_lr", 0.8, 0), RESTART[2]], r"entry 4, operation 2 \(change_lr\), round 1"),
        ([*RESTART, entry("set_lr", 1, 1)], r"entry 4, operation 4 \(reset_lr_schedule\), round 1"),
    ],
)
def test_what_has_been_done_must_stay(whole: MorphingTrainer, tmp_path: Path, operations: Any, place: str) -> None:
    schedule = [*DONE, {"repeat": "end", "operations": operations}]
    with pytest.raises(
        CheckpointError, match=rf"{place} of the schedule has been executed already.*write out the rounds"
    ):
        run(tmp_path, schedule, str(whole.run_folder / "checkpoint-14"))
    with pytest.raises(CheckpointError, match=r"entry 7 \(reset_lr_schedule\) of the schedule has been executed"):
        run(tmp_path, [*DONE, *RESTART], str(whole.run_folder / "checkpoint-14"))


def test_a_checkpoint_holds_the_endless_form(whole: MorphingTrainer) -> None:
    saved = read_bundle(whole.run_folder / "checkpoint-15")
    assert Schedule.of(list(saved.schedule)) == whole.schedule
    assert saved.schedule[-1]["repeat"] == "end"
    assert [line["index"] for line in saved.state["executed"]] == [*range(8)]


# --- What is checked before a run ---


def test_a_batch_that_grows_beyond_the_data_in_a_later_round(tmp_path: Path) -> None:
    schedule = [entry("set_lr", 1e-3, 0), entry("change_batch_size", 2, 3, repeat="end")]
    options = {"dataloader_drop_last": True, "max_steps": 40}
    with pytest.raises(ScheduleError, match=r"entry 2 \(change_batch_size\), round 5, value: 101 samples make no comp"):
        trainer(tmp_path, schedule, **options)
    trainer(tmp_path, schedule, **{**options, "max_steps": 15})
    trainer(tmp_path, schedule, **{**options, "dataloader_drop_last": False})


def test_an_operation_that_fits_no_longer_in_a_later_round(tmp_path: Path) -> None:
    schedule = [entry("stack_layers", 1.5, 4, repeat="end")]
    with pytest.raises(ScheduleError, match=r"entry 1 \(stack_layers\), round 2, value: 3 layers times 1.5 is 4.5"):
        trainer(tmp_path, schedule)
    made = trainer(tmp_path, schedule, max_steps=8)
    made.train()
    assert applied(made) == [("stack_layers", 4)]


def test_an_endless_part_alone_is_a_schedule(tmp_path: Path) -> None:
    endless = [entry("set_warmup_iters", 2, 3, repeat="end")]
    with pytest.raises(
        ScheduleError, match=r"entry 1 \(set_warmup_iters\), round 1: lr_scheduler_type 'constant' has no"
    ):
        trainer(tmp_path, endless, lr_scheduler_type="constant")
    made = trainer(tmp_path)
    made.create_optimizer_and_scheduler(10)
    with pytest.raises(ConfigError, match="a learning-rate scheduler is bound to its optimizer"):
        trainer(tmp_path, endless, optimizers=(made.optimizer, made.lr_scheduler))
