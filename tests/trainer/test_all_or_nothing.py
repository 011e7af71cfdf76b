"""A morph that fails in the middle leaves the trainer as it was, at every phase, and training could go on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.errors import OperationError
from morphing_trainer.operations import StackLayers
from morphing_trainer.run import applying
from morphing_trainer.run.journal import read_journal
from tests.support import same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, entry, optimizer_state

SCHEDULE = [entry("freeze_layer", "wpe", 3), entry("stack_layers", 2, 2)]


class Fails(Exception):
    """What the injected failure raises."""


def boom(*args: Any, **kwargs: Any) -> Any:
    torch.rand(3)  # a failure may have drawn random numbers of its own
    raise Fails("injected")


def picture(made: MorphingTrainer) -> dict[str, Any]:
    """Everything that a failed morph must not touch: objects by identity, tensors by their bits."""
    accelerator, handler = made.accelerator, made.callback_handler
    assert made.session is not None
    state = made.session.state
    return {
        "objects": [made.model, made.model_wrapped, made.optimizer, made.lr_scheduler, made._created_lr_scheduler],
        "handler": [handler.model, handler.optimizer, handler.lr_scheduler, handler.train_dataloader],
        "accelerator": [list(getattr(accelerator, name)) for name in ("_models", "_optimizers", "_schedulers")],
        "flags": [parameter.requires_grad for parameter in made.model.parameters()],
        "training": made.model.training,
        "schedule": made.lr_scheduler.state_dict() | {"lr_lambdas": None},
        "state": copy.deepcopy(state.to_dict()) | {"seconds": 0},
        "executed": list(state.executed),
    }


def is_same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(is_same(a, b) for a, b in zip(left, right, strict=True))
    return left is right or (isinstance(left, int | float | str | bool | tuple | type(None)) and left == right)


class Photographer(TrainerCallback):
    """Remembers the trainer as it is when the step before the second operation is done."""

    def __init__(self) -> None:
        self.made: MorphingTrainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            assert self.made is not None
            self.before = picture(self.made)
            self.weights = weights(self.made)
            self.optimizer = optimizer_state(self.made)
            self.random = torch.get_rng_state()
            self.numpy = np.random.get_state()[1].copy()


def fail_grow(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(applying, "grow", boom)


def fail_in_operation(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    # Planning plays the schedule before the run; only the morph itself is to fail.
    patch.setattr(StackLayers, "morph", boom)


def fail_rebuild(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(applying, "rebuild_optimizer", boom)


def fail_prepare(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(made, "prepare_again", boom)


def fail_scheduler(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(made, "_scheduler_at", boom)


def fail_after_prepare(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    prepare = made.prepare_again

    def prepared(*args: Any) -> None:
        prepare(*args)
        boom()

    patch.setattr(made, "prepare_again", prepared)


def fail_install(made: MorphingTrainer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(applying, "install_states", boom)


PHASES = [
    fail_grow,
    fail_in_operation,
    fail_rebuild,
    fail_prepare,
    fail_scheduler,
    fail_after_prepare,
    fail_install,
]


class Survivor(MorphingTrainer):
    """Breaks one phase of the second operation, and afterwards goes on without it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.phase: Any = None
        self.goes_on = False
        self.caught: dict[str, Any] = {}
        super().__init__(*args, **options)

    def _apply_due(self, *args: Any) -> None:
        assert self.session is not None
        if self.session.state.position.done == 0 or self.phase is None:
            return super()._apply_due(*args)
        with pytest.MonkeyPatch.context() as patch:
            self.phase(self, patch)
            try:
                super()._apply_due(*args)
            except Fails:
                self.caught = {
                    "picture": picture(self),
                    "weights": weights(self),
                    "optimizer": optimizer_state(self),
                    "random": torch.get_rng_state(),
                    "numpy": np.random.get_state()[1].copy(),
                }
                if not self.goes_on:
                    raise
        self.phase = None  # it is still due, and is done at the next attempt
        return None


def survivor(
    folder: Path, phase: Any, goes_on: bool, schedule: Any = SCHEDULE, model: Any = None
) -> tuple[Survivor, Photographer]:
    photographer = Photographer()
    model = model or tiny_model(**DROPOUT)
    plain = trainer(folder, schedule, model, callbacks=[photographer], eval_strategy="no")
    plain.__class__ = Survivor
    assert isinstance(plain, Survivor)
    plain.phase, plain.goes_on, plain.caught = phase, goes_on, {}
    photographer.made = plain
    return plain, photographer


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_failure_leaves_everything_as_it_was(tmp_path: Path, phase: Any) -> None:
    made, photographer = survivor(tmp_path, phase, goes_on=False)
    with pytest.raises(Fails, match="injected"):
        made.train()
    for name, value in photographer.before.items():
        assert is_same(made.caught["picture"][name], value), name
    assert same(made.caught["weights"], photographer.weights)
    assert same(made.caught["optimizer"], photographer.optimizer)
    assert torch.equal(made.caught["random"], photographer.random)
    assert (made.caught["numpy"] == photographer.numpy).all()
    last = read_journal(tmp_path / "journal.jsonl")[-1]
    assert (last["event"], last["error"]) == ("failed", "Fails: injected")


LORA = [
    entry("merge_lora_weights", None, 2),
    entry("merge_lora_weights", None, 2, restart=False),
    entry("set_attn_lora_rank", 2, 2),
    entry("set_embedding_lora_rank", 6, 2),
    entry("change_lora_alpha", 2, 2),
]


@pytest.mark.parametrize("line", LORA, ids=lambda line: f"{line['name']} {line['value']}")
def test_failure_of_a_lora_operation(tmp_path: Path, line: dict[str, Any]) -> None:
    """In the last phases, where all is built and half of it is in place; the second attempt succeeds."""
    start = add_adapters(tiny_model(**DROPOUT), LoraArguments(4, 4, lora_dropout=0.1))
    schedule = [entry("freeze_layer", "wpe", 3), line]
    for phase in (fail_after_prepare, fail_install):
        made, photographer = survivor(tmp_path / phase.__name__, phase, True, schedule, start)
        made.train()
        for name, value in photographer.before.items():
            assert is_same(made.caught["picture"][name], value), name
        assert same(made.caught["weights"], photographer.weights)
        assert same(made.caught["optimizer"], photographer.optimizer)
        assert torch.equal(made.caught["random"], photographer.random)
    smooth = trainer(tmp_path / "smooth", schedule, start, eval_strategy="no")  # type: ignore[arg-type]
    smooth.train()
    assert same(weights(made), weights(smooth))
    assert same(optimizer_state(made), optimizer_state(smooth))


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_training_goes_on_after_a_failure(tmp_path: Path, phase: Any) -> None:
    """A second attempt succeeds, and the run ends as if the first had never been made."""
    made, _ = survivor(tmp_path / "failed", phase, goes_on=True)
    made.train()
    assert made.caught
    smooth = trainer(tmp_path / "smooth", SCHEDULE, tiny_model(**DROPOUT), eval_strategy="no")
    smooth.train()
    assert same(weights(made), weights(smooth))
    assert same(optimizer_state(made), optimizer_state(smooth))


def test_an_operation_that_does_not_fit_is_found_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layer 9"):
        trainer(tmp_path, [entry("widen_mlp", 2, 3), entry("stack_layers", [0, 0, 9], 2)])
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []
    assert issubclass(OperationError, ValueError)
