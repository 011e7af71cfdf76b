"""A morph fails at every function that it enters and leaves: afterwards all is as before, and it can be done again.

Which functions these are is observed, with `sys.setprofile` in a run in which nothing fails, so no name stands here
that might move. They are those of the package and, while a morph goes on, of accelerate and of transformers' Trainer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import accelerate
import pytest
import torch
import transformers
from transformers import TrainerCallback

import morphing_trainer
from morphing_trainer import MorphingTrainer
from tests.conformance.cases import ARCHITECTURE, MEASURED, SETTINGS, Case
from tests.conformance.common import of
from tests.reliability.program import digest
from tests.support import trainer
from tests.trainer.conftest import _frozen_imports, _no_picture  # noqa: F401  # fixtures, for speed

PLACES = tuple(
    str(Path(path).parent if path.endswith("__init__.py") else path)
    for path in (morphing_trainer.__file__, accelerate.__file__, transformers.trainer.__file__)
)

Point = tuple[str, str, int, str]
"""File, function, line and "call" or "return"."""


class Injected(Exception):
    """What fails."""


class Observer:
    """Sees functions entered and left. Collects them; or raises `Injected` at the first time of one of them."""

    def __init__(self, target: Point | None = None) -> None:
        self.target = target
        self.seen: dict[Point, None] = {}
        self.raised = False
        self.random = torch.get_rng_state()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PLACES):
            return
        if code.co_flags & 0x20 or code.co_name.startswith("<"):  # generators, and what only spells one expression
            return
        if event == "return" and argument is None and sys.exception() is not None:
            return
        point = (code.co_filename, code.co_qualname, code.co_firstlineno, event)
        if self.target is None:
            self.seen.setdefault(point)
        elif point == self.target and not self.raised:
            self.raised = True
            sys.setprofile(None)
            self.random = torch.get_rng_state()
            if Path(point[0]).parent.name in ("lineage", "operations"):
                torch.rand(3)  # a failure may have drawn random numbers of its own
            raise Injected("injected")

    def watching(self, work: Callable[[], None]) -> None:
        sys.setprofile(self)
        try:
            work()
        finally:
            sys.setprofile(None)


def picture(made: MorphingTrainer) -> list[Any]:
    """Everything that a failed morph must not touch: objects by identity, numbers by value."""
    assert made.session is not None
    state, handler, accelerator = made.session.state, made.callback_handler, made.accelerator
    plain = state.to_dict() | {"seconds": 0, "timing": {}}
    return [
        [id(each) for each in (made.model, made.model_wrapped, made.optimizer, made.lr_scheduler)],
        [id(each) for each in (handler.model, handler.optimizer, handler.lr_scheduler)],
        [[id(each) for each in getattr(accelerator, name)] for name in ("_models", "_optimizers", "_schedulers")],
        [parameter.requires_grad for parameter in made.model.parameters()],
        [parameter.grad is None for parameter in made.model.parameters()],
        made.model.training,
        *(f"{key}: {value}" for key, value in plain.items()),
        len(state.executed),
        [getattr(made.args, name) for name in made._given],
        made._train_batch_size,
        [made.state.max_steps, made.state.eval_steps, made.state.train_batch_size],
        [made.control.should_training_stop, made.control.should_save, made.control.should_evaluate],
        digest(made),
    ]


class Harassed(MorphingTrainer):
    """Tries its operation again and again, with another failure each time, before it does it.

    A failure that an inner function handles, or one that comes when the operation is done and is only being told of,
    ends the attempts: `tried` says how many there were.
    """

    turns: list[Point] | None = None
    points: list[Point]
    tried: list[Point]
    undone: int
    digests: list[str]

    def _apply_due(self, *args: Any) -> None:
        assert self.session is not None
        position = self.session.state.position
        for point in self.turns or []:
            self.tried.append(point)
            before, observer = picture(self), Observer(point)
            try:
                observer.watching(lambda: super(Harassed, self)._apply_due(*args))
            except Injected:
                now = picture(self)
                if self.session.state.position.done > position.done:
                    torch.set_rng_state(observer.random)
                    return
                differing = [number for number, (was, is_) in enumerate(zip(before, now, strict=True)) if was != is_]
                assert not differing, f"{point}: {[f'{before[n]} {now[n]}'[:400] for n in differing]}"
                self.undone += 1
            else:
                if observer.raised:  # and somebody has seen to it who only tells of the operation, such as statistics
                    torch.set_rng_state(observer.random)
                return
        observer = Observer()
        observer.watching(lambda: super(Harassed, self)._apply_due(*args))
        self.points = list(observer.seen)


class Digests(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.made.digests.append(digest(self.made))

    made: Harassed


def harassed(folder: Path, case: Case, model: Any, turns: list[Point] | None) -> Harassed:
    digests = Digests()
    options = {"max_steps": 4, "eval_steps": 100, "eval_iters": 3, "logging_steps": 50, "callbacks": [digests]}
    made: Any = trainer(folder, [{**case.written, "max_wait_iters": 2}], model, **options)
    made.__class__ = Harassed
    made.turns, made.points, made.tried, made.undone, made.digests = turns, [], [], 0, []
    digests.made = made
    made.train()
    assert isinstance(made, Harassed)
    return made


SETTING = [Case(f"{name}-{value}", {"name": name, "value": value}) for name, value, _ in SETTINGS] + [
    Case("advance", {"name": "advance_stage", "value": None}),
    *(Case(f"measured-{number}", written) for number, (written, *_) in enumerate(MEASURED[1:2])),
]
CASES = (*ARCHITECTURE, *SETTING)


def sweep(folder: Path, case: Case, part: int, parts: int) -> int:
    """Every `parts`-th point of a case, from the `part`-th; the number of failures that left everything as it was."""
    model = of(case, dtype=torch.float32)[0]
    whole = harassed(folder / "whole", case, model, None)
    assert len(whole.points) > 20
    turns, number, failures = whole.points[part % parts :: parts], 0, 0
    while turns:
        number += 1
        made = harassed(folder / str(number), case, model, turns)
        assert made.digests == whole.digests, made.tried[-1]
        assert len(made.session.state.executed) == made.session.state.position.done == 1
        failures += made.undone
        turns = turns[len(made.tried) :]
    return failures


@pytest.mark.parametrize("case", CASES[::10], ids=lambda case: case.id)
def test_a_slice(tmp_path: Path, case: Case) -> None:
    assert sweep(tmp_path, case, CASES.index(case) // 10 * 7, 61) >= 1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_point(tmp_path: Path, case: Case) -> None:
    print(f"{case.id}: {sweep(tmp_path, case, 0, 1)} failures")
