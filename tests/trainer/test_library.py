"""`MorphingTrainer` in somebody's own script: what it takes, what it refuses, whom it tells."""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import ConfigError, DataError, ModelError, ScheduleError
from morphing_trainer.reporting.records import Phase, Record
from morphing_trainer.run.journal import read_journal
from morphing_trainer.run.signals import RunInterrupted
from tests.support import DEFAULTS, Tokens, arguments, losses, same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, evaluations, optimizer_state, rates

GROWING = [entry("change_lr", 0.5, 2), entry("stack_layers", 2, 2), entry("freeze_layer", "attn.3", 2)]

# ---- Refused, with a reason, before anything is trained --------------------------------------------------------------


def test_plain_training_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a MorphingConfig, is TrainingArguments"):
        MorphingTrainer(tiny_model(), TrainingArguments(str(tmp_path)), train_dataset=Tokens())  # type: ignore[arg-type]


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model: is missing"):
        MorphingTrainer(args=arguments(tmp_path), model_init=tiny_model, train_dataset=Tokens())
    with pytest.raises(ModelError, match="Linear"):
        MorphingTrainer(torch.nn.Linear(2, 2), arguments(tmp_path), train_dataset=Tokens())


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from Tokens(8)


def test_stream(tmp_path: Path) -> None:
    run = MorphingTrainer(tiny_model(), arguments(tmp_path, eval_strategy="no"), train_dataset=Stream())
    with pytest.raises(DataError, match="train_dataset: has no length"):
        run.train()
    run = MorphingTrainer(tiny_model(), arguments(tmp_path, eval_strategy="no"))
    with pytest.raises(DataError, match="train_dataset: has no length"):
        run.train()


def test_no_complete_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 samples make no complete batch of 4"):
        trainer(tmp_path, data=Tokens(3), dataloader_drop_last=True, max_steps=-1)


def test_a_batch_that_would_leave_no_step_in_an_epoch(tmp_path: Path) -> None:
    """The run would have ended at step 3 of 12 as if it were finished."""
    schedule = [entry("set_batch_size", 4, 1), entry("change_batch_size", 26, 2), entry("set_batch_size", 4, 2)]
    with pytest.raises(ScheduleError, match=r"entry 2 .*101 samples make no complete batch of 104"):
        trainer(tmp_path, schedule, dataloader_drop_last=True)
    trainer(tmp_path, schedule)


@pytest.mark.parametrize(
    "changes",
    [{"neftune_noise_alpha": 5.0}, {"train_sampling_strategy": "group_by_length"}],
)
def test_arguments_that_cannot_be_combined(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        trainer(tmp_path, **changes)


def test_scheduler_object(tmp_path: Path) -> None:
    """It is bound to its optimizer, so it cannot follow a schedule; without one it is welcome."""
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    args = arguments(tmp_path, eval_strategy="no")
    with pytest.raises(ConfigError, match="optimizers: a learning-rate scheduler is bound to its optimizer"):
        MorphingTrainer(model, args, train_dataset=Tokens(), optimizers=(optimizer, scheduler), schedule=GROWING)
    assert not list(tmp_path.glob("*"))


def test_warm_up_of_a_schedule_without_one(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="'constant' has no warm-up"):
        trainer(tmp_path, [entry("set_warmup_iters", 3, 2)], lr_scheduler_type="constant")


def test_trigger_that_can_never_fire(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="can never fire"):
        trainer(tmp_path, [entry("stack_layers", 2, trigger_loss=3.0)], eval_strategy="no")


# ---- Taken ---------------------------------------------------------------------------------------------------------


def two_groups(model: GPT2LMHeadModel) -> torch.optim.Optimizer:
    """An optimizer of another class, with a group of its own rate."""
    embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
    own = {id(parameter) for parameter in embeddings}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = [{"params": rest, "lr": 1e-2, "betas": (0.8, 0.9)}, {"params": embeddings, "lr": 2e-3}]
    return torch.optim.NAdam(groups, weight_decay=0.01)


def with_own_optimizer(
    folder: Path, schedule: Any = GROWING, scheduler: bool = False, **changes: Any
) -> MorphingTrainer:
    model = tiny_model()
    optimizer = two_groups(model)
    curve = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step) if scheduler else None
    args = arguments(folder, **{"save_strategy": "steps", "save_steps": 1, "save_total_limit": 50, **changes})
    data, optimizers = Tokens(), (optimizer, curve)
    return MorphingTrainer(
        model, args, train_dataset=data, eval_dataset=Tokens(9), schedule=schedule, optimizers=optimizers
    )


def test_own_optimizer_survives_morphs_and_resumes(tmp_path: Path) -> None:
    whole = with_own_optimizer(tmp_path / "whole", lr_scheduler_type="constant")
    whole.train()
    assert len(applied(whole)) == 3
    optimizer = whole.optimizer.optimizer
    assert type(optimizer) is torch.optim.NAdam
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 1e-3]
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9), (0.9, 0.999)]
    assert len(optimizer.param_groups[1]["params"]) == 2
    trainable = sum(parameter.requires_grad for parameter in whole.model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == trainable
    for step in (1, 2, 4, 5, 8):
        resumed = with_own_optimizer(tmp_path / f"{step}", lr_scheduler_type="constant", save_strategy="no")
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole)), step
        assert same(optimizer_state(resumed), optimizer_state(whole)), step


def test_own_scheduler_without_a_schedule(tmp_path: Path) -> None:
    whole = with_own_optimizer(tmp_path / "whole", [], scheduler=True)
    whole.train()
    assert rates(whole) == pytest.approx([1e-2 * 0.9**step for step in range(12)])
    resumed = with_own_optimizer(tmp_path / "resumed", [], scheduler=True)
    resumed.train(str(tmp_path / "whole" / "checkpoint-5"))
    assert rates(resumed) == rates(whole)
    assert same(weights(resumed), weights(whole))


class Told(TrainerCallback):
    """Notes what only this library tells callbacks, among what every Trainer does."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("begin")

    def on_plan(self, args: Any, state: Any, control: Any, phases: list[Phase], **kwargs: Any) -> None:
        self.events.append([phase.operation for phase in phases])

    def on_operation(self, args: Any, state: Any, control: Any, record: Record, **kwargs: Any) -> None:
        self.events.append((record.operation, record.step, state.global_step))


def test_callbacks_are_told(tmp_path: Path) -> None:
    told = Told()
    run = trainer(tmp_path, GROWING, callbacks=[told, TrainerCallback()])
    run.train()
    assert told.events == [
        [None, "change_lr", "stack_layers", "freeze_layer"],
        "begin",
        ("change_lr", 2, 2),
        ("stack_layers", 4, 4),
        ("freeze_layer", 6, 6),
    ]


class Sees(TrainerCallback):
    """Notes the depth of the model that callbacks are handed."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.owned: list[bool] = []

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.depths.append(len(model.transformer.h))
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self.owned.append(id(model.transformer.h[0].ln_1.weight) in held)


def test_callbacks_are_handed_the_model_and_optimizer_of_the_moment(tmp_path: Path) -> None:
    sees = Sees()
    trainer(tmp_path, GROWING, callbacks=[sees]).train()
    assert sees.depths == [2] * 4 + [4] * 8
    assert all(sees.owned)


def test_early_stopping(tmp_path: Path) -> None:
    options = {"metric_for_best_model": "eval_loss", "greater_is_better": False, "lr_scheduler_type": "constant"}
    stopping = EarlyStoppingCallback(early_stopping_patience=1)
    schedule = [entry("stack_layers", 2, 1), entry("set_lr", 3.0, 1)]
    run = trainer(tmp_path, schedule, callbacks=[stopping], eval_steps=2, max_steps=40, **options)
    run.train()
    assert run.state.global_step < 40
    assert evaluations(run)[-1][0] == run.state.global_step


def test_best_model_is_loaded_in_its_architecture(tmp_path: Path) -> None:
    """The run gets worse after it has grown: the model at the end is the small one of the best checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 3, "eval_steps": 3, "load_best_model_at_end": True}
    schedule = [entry("stack_layers", 2, 7), entry("set_lr", 3.0, 0)]
    run = trainer(tmp_path, schedule, lr_scheduler_type="constant", save_total_limit=2, **options)
    run.train()
    scores = dict(evaluations(run))
    best = min(scores, key=scores.__getitem__)
    assert best <= 6
    assert run.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert (tmp_path / f"checkpoint-{best}").is_dir(), "the best checkpoint must not be pruned"
    assert run.model.config.n_layer == 2
    assert run.evaluate()["eval_loss"] == pytest.approx(scores[best], rel=1e-6)
    run.save_model(str(tmp_path / "model"))
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "model").config.n_layer == 2


def test_training_again_after_the_best_model_was_loaded(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "eval_steps": 3, "load_best_model_at_end": True}
    run = trainer(tmp_path, [entry("stack_layers", 2, 7)], overwrite_output_dir=True, **options)
    run.train()
    before = weights(run)
    run.args.load_best_model_at_end = False
    run.train()
    after = weights(run)
    moved = [name for name in before if name in after and not torch.equal(before[name], after[name])]
    assert len(moved) > len(before) / 2, "the optimizer does not hold the model's parameters"


def test_second_call_begins_as_configured(tmp_path: Path) -> None:
    """Another run, from the model as it is, with the arguments as they were given."""
    schedule = [entry("change_lr", 0.5, 2), entry("set_batch_size", 8, 2), entry("widen_mlp", 2, 2)]
    options = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 6}
    run = trainer(tmp_path, schedule, overwrite_output_dir=True, **options)
    run.train()
    first = rates(run)
    assert first == [1e-2] * 2 + [5e-3] * 10
    assert run.model.config.n_inner == 128
    run.train()
    assert rates(run) == first
    assert run.model.config.n_inner == 256
    assert run.state.global_step == 12
    assert run.session is not None
    assert run.session.state.tokens == (4 * 4 + 8 * 8) * 16
    events = [line["event"] for line in read_journal(tmp_path / "journal.jsonl")]
    assert events.count("start") == 1
    assert applied(run) == [("change_lr", 2), ("set_batch_size", 4), ("widen_mlp", 6)]


def test_second_call_without_overwriting_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    with pytest.raises(ConfigError, match="holds another run"):
        run.train()


def test_second_call_equals_trainer(tmp_path: Path) -> None:
    """With an empty schedule also a second call is what `Trainer` does: the optimizer keeps its memory."""
    model = tiny_model()
    args = TrainingArguments(str(tmp_path / "plain"), **{**DEFAULTS, "logging_nan_inf_filter": False})
    plain = Trainer(copy.deepcopy(model), args, train_dataset=Tokens(), eval_dataset=Tokens(20, seed=2))
    ours = trainer(tmp_path / "ours", model=model, overwrite_output_dir=True, weight_decay=0.0)
    for run in (plain, ours):
        run.train()
        run.train()
    assert losses(ours) == [line["loss"] for line in plain.state.log_history if "loss" in line]
    assert same(weights(ours), weights(plain))  # type: ignore[arg-type]


def test_evaluate_and_predict_without_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, eval_iters=1)
    assert math.isfinite(run.evaluate()["eval_loss"])
    assert len(run.predict(Tokens(5)).predictions) == 5
    assert not list(tmp_path.glob("checkpoint-*"))


def test_several_evaluation_sets(tmp_path: Path) -> None:
    """The loss of the first one is the one that counts."""
    sets = {"near": Tokens(8, seed=3), "far": Tokens(8, seed=4)}
    args = arguments(tmp_path)
    schedule = [entry("freeze_layer", "wpe", trigger_loss=math.inf)]
    run = MorphingTrainer(tiny_model(), args, train_dataset=Tokens(), eval_dataset=sets, schedule=schedule)
    run.train()
    assert applied(run) == [("freeze_layer", 5)]
    first = next(line for line in run.state.log_history if "eval_near_loss" in line)
    assert run._reports.records[0].before["loss"] == first["eval_near_loss"]


def test_picture_and_journal_are_left(tmp_path: Path) -> None:
    run = trainer(tmp_path, GROWING)
    run.train()
    assert (tmp_path / "loss.png").stat().st_size > 1000
    lines = read_journal(tmp_path / "journal.jsonl")
    assert [line["event"] for line in lines if line["event"] != "evaluation"] == ["start", *["operation"] * 3, "end"]
    assert (tmp_path / "logs" / "train.log").is_file()


class Interrupts(TrainerCallback):
    """Gets a signal when the last step is over."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.raise_signal(signal.SIGTERM)


class Signalled(TrainerCallback):
    """Gets a signal in a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)


def test_a_signal_is_answered_before_the_run_is_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path, callbacks=[Signalled()], save_strategy="steps", save_steps=5)
    with pytest.raises(RunInterrupted, match=r"SIGINT received; saved .*checkpoint-4"):
        run.train()
    lines = (tmp_path / "logs" / "train.log").read_text().splitlines()
    (heard,) = (number for number, line in enumerate(lines) if "step 4: SIGINT received: saving, then stopping" in line)
    (saved,) = (number for number, line in enumerate(lines) if "checkpoint saved" in line)
    assert heard < saved


def test_a_signal_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run = trainer(tmp_path, callbacks=[Interrupts()], save_strategy="steps", save_steps=5)
    with pytest.raises(RunInterrupted, match=r"SIGTERM received; saved .*checkpoint-12") as caught:
        run.train()
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
