"""A batch in two numbers: what a step is computed from, and that its parts count by what is in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from morphing_trainer.errors import ConfigError
from tests.support import Tokens, losses, same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, ledger, optimizer_state, rates
from tests.trainer.program import Job, complete

OPTIONS: dict[str, Any] = {"per_device_train_batch_size": None, "eval_strategy": "no", "eval_steps": None}


def sizes(folder: Path, count: int = 40, schedule: Any = None, **options: Any) -> list[list[int]]:
    """Sizes of the micro-batches of every step."""
    run = ledger(folder, count, schedule, **{**OPTIONS, **options})
    run.train()
    assert sorted(run.samples[:count]) == list(range(count)) or options.get("max_steps", 0) > 0
    return list(run.micro_batches().values())


def test_a_step_has_exactly_so_many_samples(tmp_path: Path) -> None:
    options = {"batch_size": 10, "mini_batch_size": 4, "max_steps": -1, "num_train_epochs": 1}
    assert sizes(tmp_path / "even", 40, **options) == [[4, 4, 2]] * 4
    assert sizes(tmp_path / "rest", 35, **options) == [[4, 4, 2]] * 3 + [[4, 1]]
    assert sizes(tmp_path / "at once", 40, batch_size=10, max_steps=2) == [[10]] * 2


def test_in_one_number_or_in_three_it_is_the_same(tmp_path: Path) -> None:
    one = trainer(tmp_path / "one", [], **{**OPTIONS, "batch_size": 12, "mini_batch_size": 4})
    three = trainer(
        tmp_path / "three", [], **{**OPTIONS, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    )
    one.train()
    three.train()
    assert losses(one) == losses(three)
    assert same(weights(one), weights(three))


class Uneven(Tokens):
    """Samples of which some have few labels, so that weighting by samples or by micro-batches would be seen."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self.tokens[index].clone()
        labels[: 14 * (index % 2)] = -100
        return {"input_ids": self.tokens[index], "labels": labels}


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.found = {name: each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("mini", [4, 3, 7, 9])
def test_the_gradient_is_that_of_one_batch(tmp_path: Path, mini: int) -> None:
    """To rounding (losses are computed in float32), it is that of the mean over all tokens of the ten samples.

    The control: the mean of the parts' means is another one.
    """
    model = tiny_model().double()
    seen = Gradients()
    options = {**OPTIONS, "batch_size": 10, "mini_batch_size": mini, "max_steps": 1, "max_grad_norm": 0.0}
    run = trainer(
        tmp_path, [], model, data=Uneven(20), callbacks=[seen], train_sampling_strategy="sequential", **options
    )
    run.train()
    plain = copy.deepcopy(model)
    samples = [Uneven(20)[index] for index in range(10)]
    tokens, labels = (torch.stack([sample[key] for sample in samples]) for key in ("input_ids", "labels"))

    def mean(first: int, last: int) -> torch.Tensor:
        logits = plain(input_ids=tokens[first:last]).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), labels[first:last, 1:].flatten())

    parameters = dict(plain.named_parameters())
    whole = torch.autograd.grad(mean(0, 10), list(parameters.values()))
    parts = [mean(first, min(10, first + mini)) for first in range(0, 10, mini)]
    naive = torch.autograd.grad(sum(parts, start=torch.zeros(())) / len(parts), list(parameters.values()))
    for number, name in enumerate(parameters):
        torch.testing.assert_close(seen.found[name], whole[number], rtol=1e-4, atol=1e-8)
    assert any(not torch.allclose(seen.found[n], g, rtol=1e-2) for n, g in zip(parameters, naive, strict=True))


SCHEDULE = [
    entry("change_batch_size", 2, 2),
    entry("change_grad_accum", 3, 1),
    entry("change_batch_size", 0.5, 2),
    entry("set_grad_accum", 2, 1),
]


def test_operations_act_on_it(tmp_path: Path) -> None:
    found = sizes(tmp_path, 200, SCHEDULE, batch_size=10, mini_batch_size=4, max_steps=7)
    assert found == [[4, 4, 2]] * 2 + [[8, 8, 4]] + [[*[8] * 7, 4]] * 2 + [[*[4] * 7, 2]] + [[4, 4]]


def test_a_resume_goes_on_with_the_next_sample(tmp_path: Path) -> None:
    options = {**OPTIONS, "batch_size": 10, "mini_batch_size": 4, "max_steps": 12, "save_strategy": "steps"}
    options |= {"save_steps": 1, "save_total_limit": 20, "lr_scheduler_type": "cosine"}
    whole = trainer(tmp_path / "whole", SCHEDULE, data=Tokens(300), **options)
    whole.train()
    assert len(applied(whole)) == 4
    planned = [
        (phase.settings.batch_size, phase.settings.grad_accum, phase.settings.step_samples) for phase in whole.plan
    ]
    assert planned == [(4, 3, 10), (8, 3, 20), (8, 8, 60), (4, 8, 30), (4, 2, None)]
    for step in (1, 4):
        run = trainer(tmp_path / str(step), SCHEDULE, data=Tokens(300), **options)
        run.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(run), weights(whole)), step
        assert same(optimizer_state(run), optimizer_state(whole)), step
        assert rates(run) == rates(whole)


def test_a_resume_may_change_it(tmp_path: Path) -> None:
    """9 = 4 + 4 + 1 and 12 = 4 + 4 + 4 have as many parts: only the samples of a step say that the run gets shorter."""
    common = {**OPTIONS, "save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "sequential"}
    common |= {"mini_batch_size": 4, "max_steps": -1, "num_train_epochs": 1, "save_total_limit": 9}
    first = ledger(tmp_path / "a", 60, batch_size=9, **common)
    first.train()
    assert first.state.global_step == 7
    second = ledger(tmp_path / "b", 60, batch_size=12, **common)
    second.train(str(tmp_path / "a" / "checkpoint-2"))
    assert list(second.micro_batches().values()) == [[4, 4, 4]] * 3 + [[4, 2]]
    assert second.samples == list(range(18, 60))
    assert second.state.global_step == second.state.max_steps == 6


def test_two_processes_share_a_step(tmp_path: Path) -> None:
    """10 samples: in one process 4 + 4 + 2, in two (2 + 2) + (2 + 2) + (1 + 1); through a morph and an epoch's end."""
    schedule = [entry("widen_mlp", 2, 2), entry("change_batch_size", 2, 2)]
    jobs = [
        Job(
            tmp_path / str(n),
            schedule,
            options={**OPTIONS, "batch_size": 10, "mini_batch_size": 4 // n, "max_steps": 7},
        )
        for n in (1, 2)
    ]
    one, two = (complete(job, number) for number, job in enumerate(jobs, 1))
    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)
    for name, weight in one.weights().items():
        torch.testing.assert_close(two.weights()[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mini_batch_size": 4}, "mini_batch_size: is a part of batch_size, which is missing"),
        (
            {"batch_size": 8, "per_device_train_batch_size": 2},
            "batch_size: stands beside per_device_train_batch_size; give the batch either by batch_size and",
        ),
        ({"batch_size": 8, "gradient_accumulation_steps": 2}, "batch_size: stands beside gradient_accumulation_steps"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"batch_size": 8, "mini_batch_size": 0}, "mini_batch_size: must be at least 1"),
    ],
)
def test_what_contradicts_itself(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, [], **{**OPTIONS, **given})
