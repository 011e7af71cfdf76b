"""Small real things that the tests share: models, data, arguments."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from morphing_trainer import MorphingConfig, MorphingTrainer
from morphing_trainer.data.mixture import Mixture
from morphing_trainer.data.samples import Blocks, Continuations, collate
from morphing_trainer.models import new_model
from morphing_trainer.run.course import TrainingStage
from morphing_trainer.run.length import Length

VOCAB, LENGTH = 32, 16


def tiny_config(**changes: Any) -> GPT2Config:
    """A GPT-2 of two layers, fast enough for hundreds of tests."""
    values = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": VOCAB, "n_positions": LENGTH}
    values |= {"bos_token_id": 0, "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(**{**values, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    return new_model(tiny_config(**changes), seed)


def by_peft(model: GPT2LMHeadModel, **options: Any) -> PeftModel:
    """The model with adapters that PEFT itself has put on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what transformers has deprecated, and of mixed layouts
        found = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **options))
    assert isinstance(found, PeftModel)
    return found


def stirred(model: Any, seed: int = 3) -> Any:
    """The model with other numbers in all matrices of its adapters, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """(count, length) random tokens with some structure, so that a loss can fall."""

    def __init__(self, count: int = 101, length: int = LENGTH, vocab: int = VOCAB, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, vocab, (count, 1), generator=generator)
        strides = torch.randint(1, 4, (count, 1), generator=generator)
        self.tokens = (starts + strides * torch.arange(length)) % vocab

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def pieces(sizes: Sequence[int], seed: int = 3) -> Continuations:
    """Texts of so many samples each, which go on from sample to sample; lengths and prompts differ."""
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(4, LENGTH + 1, count))])
    prompts = rng.integers(0, 3, count).astype(np.int32)
    tokens = rng.integers(0, VOCAB, int(offsets[-1])).astype(np.uint16)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return Continuations(tokens, offsets, prompts, starts, LENGTH, fingerprint=f"pieces {seed}")


def staged_data() -> list[TrainingStage]:
    """Three stages: so many epochs, steps and tokens; samples, texts, and a mixture of both."""
    texts = pieces([3, 1, 4, 2, 6, 1, 5, 3, 2, 4])
    mixture = Mixture([Blocks(Tokens(40, seed=4).tokens.numpy().astype(np.int32)), texts], [2, 1])
    return [
        TrainingStage("basics", Tokens(29), Tokens(20, seed=2), Length("epochs", 1.5)),
        TrainingStage("texts", texts, pieces([2, 3, 1], seed=5), Length("steps", 9), learning_rate=5e-3),
        TrainingStage("mixture", mixture, Tokens(20, seed=2), Length("tokens", 500)),
    ]


DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": 12,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "per_device_eval_batch_size": 8,
    "save_strategy": "no",
    "use_cpu": True,
    "report_to": "none",
    "seed": 7,
}


def arguments(folder: Path, **changes: Any) -> MorphingConfig:
    return MorphingConfig(str(folder), **{**DEFAULTS, **changes})


def trainer(
    folder: Path, schedule: Any = None, model: GPT2LMHeadModel | None = None, **changes: Any
) -> MorphingTrainer:
    """A trainer over `Tokens`; the model is copied, so that a test can start from it twice."""
    options = {name: changes.pop(name) for name in ("callbacks", "optimizers", "data_collator") if name in changes}
    if stages := changes.pop("stages", None):
        options |= {"stages": stages, "data_collator": collate}
        changes.setdefault("max_steps", -1)
    else:
        data = changes.pop("data", None) or Tokens()
        options |= {"train_dataset": data, "eval_dataset": Tokens(20, seed=2)}
    return MorphingTrainer(
        copy.deepcopy(model) if model is not None else tiny_model(),
        arguments(folder, **changes),
        schedule=schedule,
        **options,
    )


def losses(finished: MorphingTrainer) -> list[float]:
    """Every logged training loss."""
    return [entry["loss"] for entry in finished.state.log_history if "loss" in entry]


def weights(finished: MorphingTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in finished.model.named_parameters()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit, names included."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
