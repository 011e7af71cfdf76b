"""Losses and gradients that are NaN or infinite: `on_nan` stops, leaves the update out, or goes back; to the bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import ConfigError, NotFiniteError
from morphing_trainer.run.bundle import read_bundle
from morphing_trainer.run.journal import effective, read_journal
from tests.support import Tokens, arguments, losses, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, applied, entry, evaluations, optimizer_state, rates
from tests.trainer.program import Job, complete, finish, start
from tests.trainer.spoiling import Spoils

RUN: dict[str, Any] = {"max_steps": 10, "eval_steps": 4, "save_total_limit": 100, "lr_scheduler_type": "linear"}
GROWS = entry("stack_layers", 2, 5)


def make(folder: Path, schedule: Any = (GROWS,), **changes: Any) -> MorphingTrainer:
    options = {"data": Tokens(61), "save_strategy": "steps", "save_steps": 1, **RUN, **changes}
    return trainer(folder, list(schedule), tiny_model(**DROPOUT), **options)


def run(folder: Path, schedule: Any = (GROWS,), resume: Any = None, **changes: Any) -> MorphingTrainer:
    made = make(folder, schedule, **changes)
    made.train(resume)
    return made


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(folder / "journal.jsonl") if event["event"] in names]


def assert_same_run(left: MorphingTrainer, right: MorphingTrainer) -> None:
    assert left.state.global_step == right.state.global_step
    assert same(weights(left), weights(right))
    assert same(optimizer_state(left), optimizer_state(right))
    for read in (losses, rates, evaluations, applied):
        assert read(left) == read(right), read


def assert_sound(folder: Path) -> None:
    """No checkpoint holds a number that is not finite."""
    from safetensors.torch import load_file

    for path in checkpoints(folder):
        assert all(bool(weight.isfinite().all()) for weight in load_file(path / "model.safetensors").values())
        memory = torch.load(path / "optimizer.pt", weights_only=True)["state"]
        assert all(bool(value.isfinite().all()) for kept in memory.values() for value in kept.values())


BAD: dict[str, Callable[[], Spoils]] = {
    "a loss": lambda: Spoils([4]),
    "an infinite loss": lambda: Spoils([4], math.inf),
    "a gradient": lambda: Spoils([4], math.nan, "gradient"),
    "an infinite gradient": lambda: Spoils([4], math.inf, "gradient"),
}


# ---- stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_stop(tmp_path: Path, what: str, max_grad_norm: float) -> None:
    made = make(tmp_path, callbacks=[BAD[what]()], max_grad_norm=max_grad_norm)
    said = "gradient" if "gradient" in what else "loss"
    with pytest.raises(NotFiniteError, match=rf"^step 4: the {said}.* is NaN or infinite") as caught:
        made.train()
    last = tmp_path / "checkpoint-3"
    assert f"checkpoint-3 is the last good checkpoint; go on from it by --resume_from_checkpoint {last}" in str(
        caught.value
    )
    assert checkpoints(tmp_path)[0] == last
    assert_sound(tmp_path)
    assert events(tmp_path, "failed")[0]["step"] == 4


@pytest.mark.parametrize("part", [0, 2])
def test_stop_in_any_micro_batch(tmp_path: Path, part: int) -> None:
    spoils = Spoils([3], math.nan, "gradient", part)
    with pytest.raises(NotFiniteError, match="step 3: the gradient"):
        run(tmp_path, callbacks=[spoils], gradient_accumulation_steps=3, save_strategy="no")


def test_stop_at_the_last_step_and_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"step 10: .*Nothing has been saved before; start again, with a lower"):
        run(tmp_path, callbacks=[Spoils([10])], save_strategy="no")


def test_the_checkpoint_named_is_of_this_run(tmp_path: Path) -> None:
    """Not one of a life before, from which nothing leads here."""
    run(tmp_path)
    made = make(tmp_path, callbacks=[Spoils([4])], save_strategy="no")
    with pytest.raises(NotFiniteError, match="checkpoint-2 is the last good"):
        made.train(str(tmp_path / "checkpoint-2"))


def test_compiled(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="step 4: the loss"):
        run(
            tmp_path,
            [],
            callbacks=[Spoils([4])],
            save_strategy="no",
            torch_compile=True,
            torch_compile_backend="eager",
            max_steps=5,
        )


# ---- skip -----------------------------------------------------------------------------------------------------------


class Keeps(TrainerCallback):
    """Weights, moments and rate before and after a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.found: list[Any] = []
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.step - 1, self.step):
            self.found.append((weights(self.trainer), optimizer_state(self.trainer)))


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_skip(tmp_path: Path, what: str, max_grad_norm: float) -> None:
    """The step leaves no trace in weights, moments and learning rate, and the next one learns."""
    keeps = Keeps(4)
    options = {"on_nan": "skip", "max_grad_norm": max_grad_norm, "weight_decay": 0.1, "save_strategy": "no"}
    made = make(tmp_path / "run", callbacks=[BAD[what](), keeps], **options)
    keeps.trainer = made
    made.train()
    before, after = keeps.found
    assert same(before[0], after[0]) and same(before[1], after[1])
    assert not same(after[0], weights(made))
    assert made.state.global_step == 10
    (event,) = events(tmp_path / "run", "skipped_step")
    assert (event["step"], event["streak"]) == (4, 1)
    # One update fewer than steps: the schedule of the rate does not go on either, as with a scaler of gradients.
    plain = rates(run(tmp_path / "plain", callbacks=[], **{**options, "on_nan": "stop"}))
    assert rates(made) == plain[:3] + plain[3:9]
    # The step is in no mean.
    assert len(losses(made)) == 9 and all(map(math.isfinite, losses(made)))
    assert made.session is not None
    assert math.isfinite(made.session.state.totals["train"].loss_sum)


def test_skip_under_accumulation(tmp_path: Path) -> None:
    """One bad part spoils the step, as its gradients are added up."""
    options = {"on_nan": "skip", "gradient_accumulation_steps": 3, "logging_steps": 5}
    made = run(tmp_path, callbacks=[Spoils([2, 4], part=1)], **options)
    assert [event["step"] for event in events(tmp_path, "skipped_step")] == [2, 4]
    assert all(map(math.isfinite, losses(made)))
    assert_sound(tmp_path)


def test_too_many_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(
        NotFiniteError, match="step 7: the loss or gradient has been NaN or infinite in 3 steps in a row"
    ):
        run(tmp_path, callbacks=[Spoils([2, 3, 5, 6, 7, 8])], on_nan="skip", nan_limit=3)
    assert [event["streak"] for event in events(tmp_path, "skipped_step")] == [1, 2, 1, 2, 3]
    assert_sound(tmp_path)


SPOILT = [3, 4, 7]


@pytest.fixture(scope="module", params=["skip", "rollback"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MorphingTrainer]:
    folder = tmp_path_factory.mktemp(request.param) / "run"
    options = {"save_steps": 1 if request.param == "skip" else 2}
    return request.param, run(folder, on_nan=request.param, callbacks=[Spoils(SPOILT)], **options)


class Killed(BaseException):
    """As sudden as an exception can be."""


class Dies(TrainerCallback):
    """Ends the run in the middle of the so many-th step, those that are made again included."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


EVERY_STEP = [pytest.param(step, marks=[pytest.mark.long] * (step not in (3, 5, 8))) for step in range(1, 10)]


@pytest.mark.parametrize("step", EVERY_STEP)
def test_killed_at_any_step(tmp_path: Path, whole: tuple[str, MorphingTrainer], step: int) -> None:
    way, finished = whole
    options = {"on_nan": way, "save_steps": 1 if way == "skip" else 2}
    with pytest.raises(Killed):
        run(tmp_path / "run", callbacks=[Spoils(SPOILT), Dies(step)], **options)
    made = run(tmp_path / "run", (GROWS,), "auto", callbacks=[Spoils(SPOILT)], **options)
    assert_same_run(made, finished)
    assert_sound(tmp_path / "run")
    happened = effective(read_journal(tmp_path / "run" / "journal.jsonl"))
    assert [event["step"] for event in happened if event["event"] == "skipped_step"] == SPOILT


# ---- rollback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save_steps", [1, 3])
def test_rollback_is_what_skip_would_have_been(tmp_path: Path, save_steps: int) -> None:
    """Whatever it goes back to: the update of the bad step is left out, and all else comes as before."""
    options = {"save_steps": save_steps}
    made = run(tmp_path / "run", on_nan="rollback", callbacks=[Spoils([5, 8])], **options)
    other = run(tmp_path / "skip", on_nan="skip", callbacks=[Spoils([5, 8])], **options)
    assert_same_run(made, other)
    assert [(event["bad"], event["step"]) for event in events(tmp_path / "run", "returned")] == (
        [(5, 4), (8, 7)] if save_steps == 1 else [(5, 3), (8, 6)]
    )
    assert [event["step"] for event in events(tmp_path / "run", "skipped_step")] == [5, 8]
    assert read_bundle(checkpoints(tmp_path / "run")[0]).state["bad"]["known"] == [5, 8]


def test_rolled_back_too_often(tmp_path: Path) -> None:
    options = {"on_nan": "rollback", "nan_limit": 2, "save_steps": 5}
    with pytest.raises(NotFiniteError, match=r"step 10: .* and the run has gone back to step 5 2 times") as caught:
        run(tmp_path, callbacks=[Spoils([6, 8, 10])], **options)
    assert "checkpoint-5 is the last good checkpoint" in str(caught.value)
    assert [event["times"] for event in events(tmp_path, "returned")] == [1, 2]
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5"]


@pytest.mark.parametrize("save_steps", [1, 3])
def test_a_model_that_stays_bad(tmp_path: Path, save_steps: int) -> None:
    """Leaving out one step after the other does not help it, wherever it was saved in between."""
    options = {"on_nan": "rollback", "nan_limit": 3, "save_steps": save_steps}
    with pytest.raises(
        NotFiniteError, match="step 8: the loss or gradient has been NaN or infinite in 4 steps in a row"
    ):
        run(tmp_path, callbacks=[Spoils(range(5, 11))], **options)
    assert_sound(tmp_path)


def test_rollback_passes_over_a_damaged_checkpoint(tmp_path: Path) -> None:
    class Damages(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")

    options = {"save_steps": 2}
    made = run(tmp_path / "run", on_nan="rollback", callbacks=[Spoils([5]), Damages()], **options)
    assert [(event["bad"], event["step"]) for event in events(tmp_path / "run", "returned")] == [(5, 2)]
    assert_same_run(made, run(tmp_path / "skip", on_nan="skip", callbacks=[Spoils([5])], **options))


def test_rollback_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"step 2: .*Nothing has been saved before"):
        run(tmp_path, callbacks=[Spoils([2])], on_nan="rollback", save_steps=5)


# ---- options, moments, evaluations ----------------------------------------------------------------------------------


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="on_nan: rollback goes back to a checkpoint, and this run saves none"):
        arguments(tmp_path, on_nan="rollback", save_strategy="no")
    with pytest.raises(ConfigError, match="on_nan: must be stop, rollback or skip, is 'go on'"):
        arguments(tmp_path, on_nan="go on")
    with pytest.raises(ConfigError, match="nan_limit: must be at least 1, is 0"):
        arguments(tmp_path, nan_limit=0)


def test_moments_that_are_not_finite_are_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The weights would be next."""

    class Poisons(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            if state.global_step == 10:
                memory = next(iter(optimizer.optimizer.state.values()))
                memory["exp_avg_sq"][0, 0] = math.inf

    with caplog.at_level(logging.ERROR, "morphing_trainer"):
        run(tmp_path, [], callbacks=[Poisons()])
    assert checkpoints(tmp_path)[0].name == "checkpoint-9"
    assert "step 10: 1 of the optimizer's moments hold NaN or infinity (exp_avg_sq of transformer." in caplog.text


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite(tmp_path: Path, value: float) -> None:
    """It fires no trigger, is no best, and does not stop a plateau or a loss from being judged by others."""

    class Blinds(MorphingTrainer):
        def prediction_step(self, *args: Any, **options: Any) -> Any:
            loss, logits, labels = super().prediction_step(*args, **options)
            bad = self.state.global_step == 4 and loss is not None
            return (loss * value if bad else loss), logits, labels

    schedule = [entry("change_lr", 0.5, trigger_loss=math.inf), entry("widen_mlp", 2, trigger_loss=math.inf)]
    options = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2, "max_steps": 10}
    args = arguments(tmp_path, **options, load_best_model_at_end=True, metric_for_best_model="loss")
    made = Blinds(tiny_model(), args, train_dataset=Tokens(), eval_dataset=Tokens(20, seed=2), schedule=schedule)
    made.train()
    assert applied(made) == [("change_lr", 2), ("widen_mlp", 6)]
    assert not math.isfinite(dict(evaluations(made))[4])
    assert made.state.best_global_step not in (None, 4)
    assert made.state.best_metric is not None and math.isfinite(made.state.best_metric)


# ---- Several processes ----------------------------------------------------------------------------------------------


def job(folder: Path, spoils: tuple[int, tuple[int, ...], str] | None, on_nan: str, **options: Any) -> Job:
    usual = {"max_steps": 7, "per_device_train_batch_size": 2, "eval_steps": 3, "save_strategy": "steps"}
    return Job(folder, [GROWS], spoils=spoils, options={**usual, "save_steps": 1, "on_nan": on_nan, **options})


@pytest.mark.parametrize("what", ["told", "gradient"])
def test_on_one_rank_of_two(tmp_path: Path, what: str) -> None:
    """Gradients are averaged over the ranks, so both have the bad one; a loss that is infinite only one has."""
    stopped = job(tmp_path / "stopped", (1, (4,), what), "stop")
    assert finish(start(stopped, 2)) == [1, 1]
    said = [(stopped.results / f"{rank}.log").read_text() for rank in (0, 1)]
    part = "loss is NaN or infinite on 1 of 2 ranks" if what == "told" else "gradient is NaN or infinite, so"
    assert all(f"NotFiniteError: step 4: the {part}" in text for text in said)
    assert checkpoints(stopped.folder)[0].name == "checkpoint-3"


def test_ranks_skip_and_go_back_together(tmp_path: Path) -> None:
    runs = [complete(job(tmp_path / way, (1, (4,), "told"), way, save_steps=2), 2) for way in ("skip", "rollback")]
    for made in runs:
        assert same(made.weights(0), made.weights(1))
        assert [event["step"] for event in events(made.folder, "skipped_step")] == [4]
    assert same(runs[0].weights(), runs[1].weights())
    assert len(events(runs[1].folder, "returned")) == 1


def test_going_back_to_the_end_of_an_epoch(tmp_path: Path) -> None:
    """What was due at the bad step, the first of an epoch, is not done at the last one of the epoch before."""
    options = {"data": Tokens(31), "eval_steps": 1, "max_steps": 12}
    left_out, gone_back = (
        run(tmp_path / way, (), callbacks=[Spoils([9], what="told")], on_nan=way, **options)
        for way in ("skip", "rollback")
    )
    assert_same_run(left_out, gone_back)


def test_one_bad_step_is_within_a_limit_of_one(tmp_path: Path) -> None:
    """Under `rollback` the limit counts how often the run goes back to one checkpoint."""
    options = {"on_nan": "rollback", "nan_limit": 1, "callbacks": [Spoils([5])]}
    assert run(tmp_path / "run", (), **options).state.global_step == 10
