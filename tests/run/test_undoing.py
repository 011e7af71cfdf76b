"""All that an operation may change of a run is put back, piece by piece."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import MorphingTrainer
from morphing_trainer.run.applying import MUTABLE, bare_optimizer
from morphing_trainer.run.undoing import undone_on_failure
from tests.support import trainer


class Fails(Exception):
    pass


def picture(made: MorphingTrainer) -> dict[str, Any]:
    assert made.session is not None
    optimizer = bare_optimizer(made)
    found = {
        "state": made.session.state.to_dict(),
        "arguments": {name: getattr(made.args, name) for name in MUTABLE},
        "shown": [made.state.max_steps, made.state.eval_steps, made.state.train_batch_size],
        "control": dict(vars(made.control)),
        "batch": made._train_batch_size,
        "groups": [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups],
        "schedule": made.lr_scheduler.state_dict(),
        "random": torch.get_rng_state().tolist(),
    }
    return copy.deepcopy(found)


def state(made: MorphingTrainer) -> None:
    assert made.session is not None
    made.session.state.stage_end += 7
    made.session.state.executed.append({"index": 9})
    made.session.state.groups["another"] = 1
    made.session.state.evaluations.append((9, 9.0))


def arguments(made: MorphingTrainer) -> None:
    for name in MUTABLE:
        setattr(made.args, name, 77)


def shown(made: MorphingTrainer) -> None:
    made.state.max_steps, made.state.eval_steps, made.state.train_batch_size = 71, 72, 73


def control(made: MorphingTrainer) -> None:
    made.control.should_training_stop = made.control.should_save = made.control.should_evaluate = True


def batch(made: MorphingTrainer) -> None:
    made._train_batch_size = 77


def groups(made: MorphingTrainer) -> None:
    for group in bare_optimizer(made).param_groups:
        group["lr"], group["initial_lr"], group["weight_decay"] = 7.0, 8.0, 9.0


def schedule(made: MorphingTrainer) -> None:
    made.lr_scheduler.step()
    made.lr_scheduler.base_lrs = [7.0 for _ in made.lr_scheduler.base_lrs]


def random(made: MorphingTrainer) -> None:
    torch.rand(7)


CHANGES = {"state": state, "arguments": arguments, "shown": shown, "control": control, "batch": batch}
CHANGES |= {"groups": groups, "schedule": schedule, "random": random}


class Undoes(TrainerCallback):
    """In the middle of a run: each piece is changed, and an error raised."""

    def __init__(self) -> None:
        self.made: Any = None
        self.found: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != 3:
            return
        for name, change in CHANGES.items():
            before, changed = picture(self.made), {}
            with pytest.raises(Fails), undone_on_failure(self.made):
                change(self.made)
                changed = picture(self.made)
                raise Fails
            self.found[name] = before, changed, picture(self.made)


def test_every_piece_is_put_back(tmp_path: Path) -> None:
    undoes = Undoes()
    undoes.made = trainer(tmp_path, [], callbacks=[undoes], max_steps=4, lr_scheduler_type="cosine")
    undoes.made.train()
    assert undoes.found.keys() == CHANGES.keys()
    for name, (before, changed, after) in undoes.found.items():
        assert changed[name] != before[name], f"{name}: nothing was changed"
        assert after == before, name
