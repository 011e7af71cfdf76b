"""A small schedule and its records, one operation of each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from morphing_trainer.reporting import log
from morphing_trainer.reporting.records import Phase, Record
from morphing_trainer.settings import Settings

START = Settings(learning_rate=3e-4, batch_size=8, grad_accum=1, warmup_steps=100, eval_iters=50, eval_interval=200)
FASTER = replace(START, learning_rate=6e-4)
LARGER = replace(FASTER, batch_size=16, grad_accum=2)


def _phase(index: int, operation: str | None, value: Any, size: tuple[int, int, int, int], settings: Settings) -> Phase:
    layers, mlp, parameters, trainable = size
    trigger = "" if operation is None else f"loss < {9 - index}.5 or after {index}00 steps"
    return Phase(index, operation, value, trigger, layers, 128, mlp, parameters, trainable, settings)


@pytest.fixture
def phases() -> list[Phase]:
    return [
        _phase(0, None, None, (4, 512, 1_230_000, 1_230_000), START),
        _phase(1, "change_lr", 2.0, (4, 512, 1_230_000, 1_230_000), FASTER),
        _phase(2, "stack_layers", [0, 0, 1, 1, 2, 2, 3, 3], (8, 512, 2_020_000, 2_020_000), FASTER),
        _phase(3, "freeze_layer", "mlp.*", (8, 512, 2_020_000, 1_800_000), FASTER),
        _phase(4, "change_batch_size", 2.0, (8, 512, 2_020_000, 1_800_000), LARGER),
    ]


@pytest.fixture
def adapted() -> list[Phase]:
    """A plan in which adapters come, spread with the layers, get another rank and go; ranks and names are long ones."""
    steps = [
        (None, None, 12, 124_000_000, 124_000_000, 0, 0),
        ("set_attn_lora_rank", 8, 12, 125_000_000, 96_700_000, 8, 24),
        ("stack_layers", 2, 24, 210_000_000, 150_000_000, 8, 48),
        ("decrease_vocab_lora_scaling", 2, 24, 214_000_000, 154_000_000, 384, 49),
        ("merge_lora_weights", None, 24, 214_000_000, 154_000_000, 384, 49),
        ("merge_lora_weights", {"then": "remove"}, 24, 209_000_000, 209_000_000, 0, 0),
    ]
    return [
        Phase(i, name, value, "", layers, 768, 3072, size, free, START, lora_rank=rank, lora_modules=modules)
        for i, (name, value, layers, size, free, rank, modules) in enumerate(steps)
    ]


def records_of(phases: list[Phase]) -> list[Record]:
    """What is reported when the plan `phases` is carried out, an operation every 1,000 steps."""
    names = ("layers", "hidden", "mlp", "parameters", "trainable", "lora_rank", "lora_modules")
    facts = [{name: getattr(phase, name) for name in names} | phase.settings.to_dict() for phase in phases]
    return [
        Record(
            index=i,
            operation=phase.operation or "",
            value=phase.value,
            desc=None,
            trigger="loss 4.432 < 4.5",
            step=1000 * (i + 1),
            tokens=10**6,
            before={**facts[i], "loss": 4.5},
            after={**facts[i + 1], "loss": None if i % 2 else 4.5},
            moments={},
            seconds=0.345,
            preserving=True,
            multipliers={},
        )
        for i, phase in enumerate(phases[1:])
    ]


@pytest.fixture
def record(phases: list[Phase]) -> Callable[..., Record]:
    """`record(i, step, **changes)`: the record of the i-th operation, from 1."""

    def facts(phase: Phase, loss: float | None) -> dict[str, Any]:
        names = ("layers", "hidden", "mlp", "parameters", "trainable")
        return {name: getattr(phase, name) for name in names} | {"loss": loss} | phase.settings.to_dict()

    def make(i: int, step: int, losses: tuple[float | None, float | None] = (4.4321, None), **changes: Any) -> Record:
        old, new = phases[i - 1], phases[i]
        assert new.operation is not None
        made = Record(
            index=i - 1,
            operation=new.operation,
            value=new.value,
            desc=None,
            trigger="loss 4.432 < 4.5",
            step=step,
            tokens=1000 * step,
            before=facts(old, losses[0]),
            after=facts(new, losses[1]),
            moments={"carried": 0, "scaled": 0, "newborn": 0, "dropped": 0},
            seconds=0.0123,
            preserving=None,
            multipliers={},
        )
        return replace(made, **changes)

    return make


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    """No test leaves a handler on the library's logger, or another level."""
    level = logging.getLogger("morphing_trainer").level
    assert level == logging.NOTSET
    yield
    log.close_run_log()
    log.detach_console()
    assert not log.LOGGER.handlers and log.LOGGER.level == level
