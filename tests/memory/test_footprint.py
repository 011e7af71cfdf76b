"""What is predicted of a step's memory is what torch's allocator hands out when the step is made."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from morphing_trainer import LoraArguments, add_adapters, morph
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.memory.footprint import Footprint, Step, step_footprint
from tests.support import tiny_model

SHAPE = {"n_layer": 3, "n_embd": 48, "vocab_size": 1000, "n_positions": 64}
STEP = Step(samples=4, length=64)
NEAR = 0.03
"""Of the whole. Torch may free one activation of an MLP sooner than is counted: 2 % of a model of three layers."""


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, lr=1e-3, fused=True)


def measured(model: PreTrainedModel, step: Step, make: Any) -> int:
    """Bytes at the peak of a step, from the allocator's own events."""
    model.config.use_cache = False
    model.train()
    if step.checkpointing:
        model.activation_checkpointing_enable()
    optimizer = make([parameter for parameter in model.parameters() if parameter.requires_grad])
    tokens = torch.zeros(step.samples, step.length, dtype=torch.long)

    def once() -> None:
        with torch.autocast("cpu", step.autocast, enabled=step.autocast is not None):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()

    once()
    optimizer.step()
    if not step.accumulates:
        optimizer.zero_grad()
    gc.collect()
    held = [model.parameters(), (each.grad for each in model.parameters() if each.grad is not None)]
    start = sum(tensor.numel() * tensor.element_size() for tensors in held for tensor in tensors)
    start += sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        once()
        optimizer.step()
    now = peak = 0
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return start + peak


def foretold(model: PreTrainedModel, step: Step, make: Any) -> Footprint:
    return step_footprint(ModelSpec.of(model), step, make)


@pytest.mark.parametrize(
    ("step", "make"),
    [
        (STEP, adamw),
        (Step(4, 64, accumulates=True), adamw),
        (Step(4, 64, autocast=torch.bfloat16), adamw),
        (Step(4, 64, checkpointing=True), adamw),
        (Step(1, 8), adamw),
        (STEP, lambda parameters: SGD(parameters, lr=1e-3)),
        (STEP, lambda parameters: AdamW(parameters, lr=1e-3, foreach=True)),
    ],
    ids=["plain", "accumulating", "bf16", "checkpointing", "small batch", "sgd", "foreach"],
)
def test_of_a_model(step: Step, make: Any) -> None:
    model = tiny_model(**SHAPE)
    assert foretold(model, step, make).total == pytest.approx(measured(model, step, make), rel=NEAR)


@pytest.mark.parametrize("kind", ["adapters", "frozen", "grown"])
def test_of_changed_models(kind: str) -> None:
    model: PreTrainedModel = tiny_model(**SHAPE)
    if kind == "adapters":
        model = add_adapters(model, LoraArguments(lora_r=8, lora_target_modules=["c_attn", "c_fc"]))
    elif kind == "frozen":
        model = morph(model, {"name": "freeze_layer", "value": ["wte", "wpe", "h.0-1"]})[0]
    else:
        model = morph(morph(model, {"name": "stack_layers", "value": 2})[0], {"name": "widen_mlp", "value": 2})[0]
    assert foretold(model, STEP, adamw).total == pytest.approx(measured(model, STEP, adamw), rel=NEAR)


def test_its_parts() -> None:
    model = morph(tiny_model(**SHAPE), {"name": "freeze_layer", "value": "wte"})[0]
    spec = ModelSpec.of(model)
    found = foretold(model, STEP, adamw)
    assert found.weights == 4 * spec.parameters
    assert found.gradients == 4 * spec.trainable
    steps = 4 * (len(spec.shapes) - 1)
    assert found.optimizer == 2 * found.gradients + steps
    assert found.activations > 10 * 4 * 64 * 48 * 4
    assert torch.get_default_dtype() == torch.float32


def test_nothing_is_left_behind() -> None:
    """No mode stays on, and no random number is drawn."""
    before = torch.get_rng_state()
    foretold(tiny_model(**SHAPE), STEP, adamw)
    state = torch.get_rng_state()
    tiny_model(**SHAPE)  # draws from a generator of its own
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(before, state)
    assert type(torch.zeros(1)) is torch.Tensor
