"""With an empty schedule a `MorphingTrainer` trains as `transformers.Trainer` does, to the last bit.

But for weight decay: ours leaves embeddings out, and has the optimizer's own default. Both are told to the plain one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from morphing_trainer import MorphingTrainer
from tests.support import DEFAULTS, Tokens, arguments, losses, same, tiny_model, weights

# 41 samples in batches of 4 are 11 batches, the last of one sample, and 4 steps an epoch.
COMMON = {
    "gradient_accumulation_steps": 3,
    "weight_decay": 0.1,
    "warmup_steps": 3,
    "eval_steps": 4,
    "max_steps": -1,
    "num_train_epochs": 2.5,
}
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


def with_columns() -> datasets.Dataset:
    """The same tokens with columns that no model takes."""
    tokens = Tokens(41).tokens.tolist()
    columns = {"input_ids": tokens, "labels": tokens, "text": ["x"] * 41, "number": list(range(41))}
    return datasets.Dataset.from_dict(columns)


class Plain(Trainer):
    """Trainer as it is, with embeddings taken from the parameters that decay."""

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        names = super().get_decay_parameter_names(model)
        assert {"transformer.wte.weight", "transformer.wpe.weight"} < {*names}
        return [name for name in names if name not in ("transformer.wte.weight", "transformer.wpe.weight")]


def run(kind: type[Trainer], folder: Path, data: Any, **changes: Any) -> Trainer:
    options = {**COMMON, **changes}
    if kind is not MorphingTrainer:
        args = TrainingArguments(str(folder), **{**DEFAULTS, "logging_nan_inf_filter": False, **options})
    else:
        args = arguments(folder, **options)
    torch.manual_seed(3)
    model = copy.deepcopy(tiny_model(**DROPOUT))
    trainer = kind(model, args, train_dataset=data, eval_dataset=Tokens(20, seed=2))
    trainer.train()
    return trainer


def history(trainer: Trainer) -> list[dict[str, Any]]:
    """What was logged, without what depends on the clock, and without the epoch.

    `Trainer` counts a last, smaller batch as much as a full one there; `MorphingTrainer` counts samples, and says in
    every line how much has been computed.
    """
    names = ("loss", "learning_rate", "grad_norm", "step", "eval_loss", "train_loss")
    lines = [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history]
    return [*lines, {"total_flos": trainer.state.log_history[-1]["total_flos"]}]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="random"),
        pytest.param({"weight_decay": 0.0}, id="no decay"),
        pytest.param({"optim": "sgd", "optim_args": "momentum=0.5"}, id="sgd"),
        pytest.param({"train_sampling_strategy": "sequential"}, id="sequential"),
        pytest.param({"max_steps": 10}, id="max_steps over three epochs"),
        pytest.param({"dataloader_drop_last": True}, id="drop_last"),
        pytest.param({"dataloader_num_workers": 2}, id="workers"),
        pytest.param({"data_seed": 5, "lr_scheduler_type": "cosine"}, id="data_seed"),
        pytest.param({"eval_strategy": "epoch", "logging_strategy": "epoch"}, id="by epoch"),
        pytest.param({"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}, id="plateau"),
    ],
)
def test_equals_trainer(tmp_path: Path, changes: dict[str, Any]) -> None:
    plain = run(Plain, tmp_path / "plain", Tokens(41), **changes)
    morphing = run(MorphingTrainer, tmp_path / "morphing", Tokens(41), **changes)
    assert history(morphing) == history(plain)
    assert same(weights(morphing), weights(plain))
    assert morphing.state.global_step == plain.state.global_step == (changes.get("max_steps") or plain.state.max_steps)
    assert morphing.state.num_train_epochs == plain.state.num_train_epochs
    assert losses(morphing)


@pytest.mark.parametrize("workers", [0, 2])
def test_equals_trainer_on_a_dataset_with_extra_columns(tmp_path: Path, workers: int) -> None:
    plain = run(Plain, tmp_path / "plain", with_columns(), dataloader_num_workers=workers)
    morphing = run(MorphingTrainer, tmp_path / "morphing", with_columns(), dataloader_num_workers=workers)
    assert history(morphing) == history(plain)
    assert same(weights(morphing), weights(plain))


def test_without_decay_it_is_trainer_as_it_is(tmp_path: Path) -> None:
    plain = run(Trainer, tmp_path / "plain", Tokens(41), weight_decay=0.0)
    morphing = run(MorphingTrainer, tmp_path / "morphing", Tokens(41), weight_decay=0.0)
    assert history(morphing) == history(plain)
    assert same(weights(morphing), weights(plain))


def test_the_default_is_adamw_with_its_own_decay(tmp_path: Path) -> None:
    plain = run(Plain, tmp_path / "plain", Tokens(41), weight_decay=0.01)
    morphing = run(MorphingTrainer, tmp_path / "morphing", Tokens(41), weight_decay=None)
    assert history(morphing) == history(plain)
    assert same(weights(morphing), weights(plain))


def test_dropout_and_order_matter_here(tmp_path: Path) -> None:
    """Negative control: the comparison above would notice another seed of dropout or of the shuffle."""
    first = run(MorphingTrainer, tmp_path / "first", Tokens(41))
    other = run(MorphingTrainer, tmp_path / "other", Tokens(41), seed=8)
    shuffled = run(MorphingTrainer, tmp_path / "shuffled", Tokens(41), data_seed=8)
    assert history(first) != history(other)
    assert history(first) != history(shuffled)


def test_without_a_gpu_nobody_has_to_say_so(tmp_path: Path) -> None:
    """torch warns of batches that shall be pinned for an accelerator that is not there; here a warning is an error."""
    run(MorphingTrainer, tmp_path, Tokens(), use_cpu=False, max_steps=2, eval_steps=2)
