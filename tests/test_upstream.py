"""What we rely on inside transformers and accelerate, as it was when this was written.

If one of these fails after an upgrade, read the method there before recording its new signature here.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import CallbackHandler

from morphing_trainer import MorphingTrainer, trainer
from morphing_trainer.callback import SegmentHandler

OVERRIDDEN = {
    "_determine_best_metric": ["metrics", "trial"],
    "_evaluate": ["trial", "ignore_keys_for_eval", "skip_scheduler"],
    "_get_grad_norm": ["model", "grad_norm"],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_init_training_state": [
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "_load_best_model": [],
    "_load_callback_state": [],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_rng_state": ["checkpoint"],
    "_load_scaler": ["checkpoint"],
    "_prepare_for_training": ["max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_maybe_log_save_evaluate": [
        "tr_loss",
        "grad_norm",
        "model",
        "trial",
        "epoch",
        "ignore_keys_for_eval",
        "start_time",
        "learning_rate",
    ],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "_finish_current_push": [],
    "create_model_card": [
        *("language", "license", "tags", "model_name", "finetuned_from", "tasks"),
        *("dataset_tags", "dataset", "dataset_args"),
    ],
    "init_hf_repo": ["token", "private"],
    "push_to_hub": ["commit_message", "blocking", "token", "revision", "private", "kwargs"],
    "_run_epoch": [
        "model",
        "epoch",
        "train_dataloader",
        "steps_in_epoch",
        "num_update_steps_per_epoch",
        "trial",
        "ignore_keys_for_eval",
        "start_time",
        "resume_from_checkpoint",
        "epochs_trained",
        "steps_trained_in_current_epoch",
    ],
    "_save": ["output_dir", "state_dict"],
    "_save_checkpoint": ["model", "trial"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "evaluation_loop": ["dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
    "prediction_step": ["model", "inputs", "prediction_loss_only", "ignore_keys"],
    "create_scheduler": ["num_training_steps", "optimizer"],
    "floating_point_ops": ["inputs"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "get_decay_parameter_names": ["model"],
    "get_eval_dataloader": ["eval_dataset"],
    "get_optimizer_cls_and_kwargs": ["args", "model"],
    "get_train_dataloader": [],
    "log": ["logs", "start_time"],
    "save_model": ["output_dir", "_internal_call"],
    "set_initial_training_values": ["args", "dataloader"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}
"""Methods of `Trainer` that we override, with their parameters."""

CALLED: list[tuple[Any, list[str]]] = [
    (
        Trainer._maybe_log_save_evaluate,
        [
            "tr_loss",
            "grad_norm",
            "model",
            "trial",
            "epoch",
            "ignore_keys_for_eval",
            "start_time",
            "learning_rate",
        ],
    ),
    (Trainer._evaluate, ["trial", "ignore_keys_for_eval", "skip_scheduler"]),
    (Trainer._load_rng_state, ["checkpoint"]),
    (Trainer._push_from_checkpoint, ["checkpoint_folder"]),
    (Trainer.store_flos, []),
    (Trainer._remove_unused_columns, ["dataset", "description"]),
    (Trainer._get_collator_with_removed_columns, ["data_collator", "description"]),
    (Trainer.get_total_train_batch_size, ["args"]),
    (Trainer._inner_training_loop, ["batch_size", "args", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
    (TrainerState.compute_steps, ["args", "max_steps"]),
    (CallbackHandler.__init__, ["callbacks", "model", "processing_class", "optimizer", "lr_scheduler"]),
    (CallbackHandler.on_epoch_end, ["args", "state", "control", "kwargs"]),
    (CallbackHandler.on_save, ["args", "state", "control", "kwargs"]),
    (Accelerator.free_memory, ["objects"]),
]
"""Other methods that are no public interface, or whose behaviour we count on."""


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def overridden(ours: type, theirs: type) -> set[str]:
    """Names that classes of this library define and `theirs` has too."""
    own = [kind for kind in ours.__mro__ if kind.__module__.startswith("morphing_trainer")]
    names = {name for kind in own for name in vars(kind) if callable(getattr(kind, name))}
    return {name for name in names if hasattr(theirs, name) and not name.startswith("__")}


def test_every_override_is_recorded() -> None:
    assert overridden(MorphingTrainer, Trainer) == {*OVERRIDDEN}
    assert overridden(SegmentHandler, CallbackHandler) == {"on_epoch_end", "on_evaluate", "on_save"}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_are_as_they_were(name: str) -> None:
    assert parameters(getattr(Trainer, name)) == OVERRIDDEN[name]
    assert parameters(getattr(MorphingTrainer, name)) == OVERRIDDEN[name]


def test_private_overrides_are_listed_in_one_place() -> None:
    listed = trainer.__doc__ or ""
    assert [name for name in OVERRIDDEN if name.startswith("_") and name not in listed] == []


@pytest.mark.parametrize(("function", "names"), CALLED, ids=lambda value: getattr(value, "__qualname__", ""))
def test_methods_we_call_are_as_they_were(function: Any, names: list[str]) -> None:
    assert parameters(function) == names


def test_the_loop_reads_live_what_we_change() -> None:
    """The inherited epoch asks for these at every step; kept in a local variable, a change would go unnoticed."""
    source = inspect.getsource(Trainer._run_epoch)
    for live in ("self.optimizer.step()", "self.lr_scheduler.step()", "self.args.gradient_accumulation_steps"):
        assert live in source
    assert "self.control.should_epoch_stop or self.control.should_training_stop" in source
    assert "self._run_epoch(" in inspect.getsource(Trainer._inner_training_loop)


def test_what_a_step_has_changed_before_it_is_over() -> None:
    """`RecoveringTrainer` undoes a step that ran out of memory: gradients, random numbers, and these."""
    source = inspect.getsource(Trainer._run_epoch)
    fetched = source.index("self.get_batch_samples(")
    computed = source.index("self.training_step(model, inputs, num_items_in_batch)")
    assert fetched < computed
    for changed in ("self._tr_loss += tr_loss_step", "self.current_flos +=", "self._track_num_input_tokens(inputs)"):
        assert source.index(changed) > computed


def test_an_update_can_be_left_out() -> None:
    """`FiniteTrainer` says so to the optimizer, and the schedule of the learning rate stays where it is."""
    source = inspect.getsource(Trainer._run_epoch)
    looked, decided = source.index("self._get_grad_norm("), source.index("on_pre_optimizer_step(")
    made = source.index("self.optimizer.step()")
    assert looked < decided < made < source.index("if not self.accelerator.optimizer_step_was_skipped:")
    weight = torch.nn.Parameter(torch.ones(1))
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.AdamW([weight], fused=True))
    optimizer._is_overflow = True
    optimizer.step()
    assert accelerator.optimizer_step_was_skipped
    assert not optimizer.state and weight == 1
    optimizer._is_overflow = False
    assert not accelerator.optimizer_step_was_skipped


def test_accelerate_keeps_what_it_has_prepared_in_these_lists() -> None:
    accelerator = Accelerator(cpu=True)
    for name in ("_models", "_optimizers", "_schedulers", "_dataloaders"):
        assert isinstance(getattr(accelerator, name), list)
    lists = [accelerator._models, accelerator._optimizers]
    lists[0].append("kept")
    accelerator.free_memory()
    assert lists[0] == ["kept"], "emptied in place, so that a failed morph could not put it back"
    assert accelerator._models == []


def test_prepared_loader_ends_itself() -> None:
    """`_run_epoch` calls `end()` on a loader that was left in the middle."""
    loader = prepare_data_loader(torch.utils.data.DataLoader([1, 2, 3]), torch.device("cpu"), 1, 0, put_on_device=True)
    assert callable(loader.end)
    iterator = iter(loader)
    next(iterator)
    loader.end()


def test_callback_handler_calls_by_event_name() -> None:
    assert {"on_epoch_end", "on_step_end", "on_evaluate", "on_save"} <= {*dir(TrainerCallback)}
