"""Small real things for tests of evaluations: a tokenizer, samples with prompts, a model for both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from morphing_trainer import MorphingTrainer
from morphing_trainer.data.tokenizer import train_tokenizer
from tests.support import arguments, tiny_model

TEXT = [
    "A model that grows keeps what it has learnt, and goes on from there.",
    "The loss is the mean over all tokens that count; a prompt does not count.",
    "Words are what white space separates.",
    "It learns, it grows, it learns again.",
    "What is right stays right, and what is new begins at nothing.",
]
LONGEST = 24


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXT * 3, 320)


def model(seed: int = 0, **changes: Any) -> GPT2LMHeadModel:
    return tiny_model(seed, **{"vocab_size": 320, "n_positions": LONGEST, **changes})


class Prompted(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """`count` samples of 6 to `LONGEST` tokens, of which the first few are a prompt that does not count."""

    def __init__(self, count: int = 11) -> None:
        tokens = tokenizer()("\n".join(TEXT * 9))["input_ids"]
        self.samples = []
        for number in range(count):
            length, prompt = 6 + 5 * number % (LONGEST - 5), 1 + number % 4
            ids = torch.tensor(tokens[7 * number : 7 * number + length])
            labels = ids.clone()
            labels[:prompt] = -100
            self.samples.append({"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]


class Packed(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """`count` blocks of `LONGEST` tokens, all of which count."""

    def __init__(self, count: int = 11) -> None:
        tokens = torch.tensor(tokenizer()("\n".join(TEXT * 40))["input_ids"])
        self.blocks = tokens[: count * LONGEST].reshape(count, LONGEST)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}


def padded(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Filled up on the right, as a collator for samples of unequal length does."""
    longest = max(len(sample["input_ids"]) for sample in samples)

    def fill(values: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, longest - len(x)), value=value) for x in values])

    ids = [sample["input_ids"] for sample in samples]
    mask = fill([torch.ones_like(x) for x in ids], 0)
    return {
        "input_ids": fill(ids, 0),
        "labels": fill([sample["labels"] for sample in samples], -100),
        "attention_mask": mask,
    }


def made(
    folder: Path, data: Any, schedule: Any = None, start: GPT2LMHeadModel | None = None, **changes: Any
) -> MorphingTrainer:
    """A trainer that trains and evaluates on `data`."""
    options = {
        name: changes.pop(name)
        for name in ("compute_metrics", "callbacks", "eval_dataset", "data_collator")
        if name in changes
    }
    return MorphingTrainer(
        copy.deepcopy(start) if start is not None else model(),
        arguments(folder, **changes),
        train_dataset=data,
        processing_class=tokenizer(),
        schedule=schedule,
        **{"eval_dataset": data, "data_collator": padded, **options},
    )


def evaluations(finished: MorphingTrainer) -> list[dict[str, Any]]:
    """What each evaluation has logged."""
    return [line for line in finished.state.log_history if "eval_loss" in line]
