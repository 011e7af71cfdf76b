"""Optimizers in runs: their memory goes along, or the run is refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer.errors import ScheduleError
from tests.support import losses, tiny_model, trainer
from tests.trainer.common import applied, entry

WIDEN = entry("widen_mlp", 2, 3)


class Strange(torch.optim.SGD):
    """Remembers something of its own."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["trace"] = torch.zeros_like(parameter)
        return super().step(closure)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adagrad", "rmsprop"])
def test_memory_goes_along(optim: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, [WIDEN, entry("stack_layers", 2, 2)], optim=optim, max_steps=8)
    run.train()
    assert applied(run) == [("widen_mlp", 3), ("stack_layers", 5)]
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.parametrize(
    "written", [WIDEN, entry("set_attn_lora_rank", 4, 3), entry("change_lora_alpha", 2, 3)], ids=lambda e: e["name"]
)
def test_what_cannot_follow_is_refused_by_name_before_anything_is_done(written: Any, tmp_path: Path) -> None:
    schedule = [entry("stack_layers", 2, 2), entry("set_attn_lora_rank", 2, 1), written]
    with pytest.raises(ScheduleError) as caught:
        trainer(tmp_path / "run", schedule, optim="adafactor")
    (problem,) = caught.value.problems
    assert problem.where == f"schedule: entry 3 ({written['name']})"
    assert problem.what.startswith("Adafactor remembers 'exp_avg_sq_col', 'exp_avg_sq_row', for which there is no rule")
    assert problem.what.endswith("use an optimizer such as AdamW, Adam, SGD, RMSprop or Adagrad")
    assert not (tmp_path / "run" / "journal.jsonl").exists()


def test_an_optimizer_of_ones_own_is_judged_alike(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-2)
    with pytest.raises(ScheduleError, match="Adafactor remembers 'col_var', 'row_var'"):
        trainer(tmp_path, [WIDEN], model, optimizers=(optimizer, None))


@pytest.mark.parametrize(
    ("kind", "state"), [(torch.optim.Adamax, "'exp_inf'"), (torch.optim.Adadelta, "'acc_delta'"), (Strange, "'trace'")]
)
def test_every_kind_of_memory_without_a_rule_is_named(kind: Any, state: str, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(ScheduleError, match=f"{kind.__name__} remembers {state}, for which there is no rule"):
        trainer(tmp_path, [WIDEN], model, optimizers=(kind(model.parameters(), lr=1e-2), None))


def test_copies_need_no_rule(tmp_path: Path) -> None:
    run = trainer(tmp_path, [entry("stack_layers", 2, 3), entry("change_lr", 0.5, 1)], optim="adafactor", max_steps=6)
    run.train()
    assert applied(run) == [("stack_layers", 3), ("change_lr", 4)]
