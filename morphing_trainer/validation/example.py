"""The example that an evaluation shows: the first sample of its set, always the same one, so that one sees progress."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from morphing_trainer.data.loading import IGNORED_LABEL
from morphing_trainer.reporting.examples import Example
from morphing_trainer.validation.generation import write_on


def prompt_and_truth(sample: Mapping[str, Any], length: int) -> tuple[list[int], list[int]] | None:
    """The tokens before the part of a sample that counts, and the first `length` of that part; None if none counts.

    Where all of a sample counts, as in packed blocks, its first half is the prompt.

    Args:
        sample: `input_ids` and, if they differ, `labels`, each (tokens,).
    """
    if "input_ids" not in sample:
        return None
    tokens = torch.as_tensor(sample["input_ids"]).flatten().tolist()
    labels = torch.as_tensor(sample.get("labels", tokens)).flatten().tolist()
    counted = [place for place in range(1, len(tokens)) if labels[place] != IGNORED_LABEL]
    if not counted:
        return None
    start = counted[0]
    end = next((place for place in range(start, len(tokens)) if labels[place] == IGNORED_LABEL), len(tokens))
    if start == 1:
        start = max(1, end // 2)
    return tokens[:start], tokens[start : min(end, start + length)]


def make_example(
    model: PreTrainedModel, tokenizer: Any, sample: Mapping[str, Any], length: int, name: str = ""
) -> Example | None:
    """What the model writes, greedily, where the truth of `sample` begins; None if nothing of the sample counts.

    The model and the random states are left as they were.

    Args:
        length: tokens at most, of the truth and of the prediction.
        name: of the evaluation set, where there are several.
    """
    parts = prompt_and_truth(sample, length)
    if parts is None:
        return None
    prompt, truth = parts
    with undisturbed(model):
        written = write_on(model, prompt, len(truth), end=tokenizer.eos_token_id)
    before, after, ours = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (prompt, truth, written))
    return Example(before, after, ours, name)


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """`model` in evaluation mode; its modes and the random states of torch are put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        model.eval()
        try:
            yield
        finally:
            _set(modes)


def _set(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
