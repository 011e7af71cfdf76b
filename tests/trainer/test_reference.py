"""Against a plain PyTorch loop, without any Trainer, that does at fixed steps what a schedule does.

The loop knows the published closed forms of the learning-rate schedules, the seeded order of the samples, and
`morph()`. Losses of every step are the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from morphing_trainer import morph
from tests.support import Tokens, losses, tiny_model, trainer, weights
from tests.trainer.common import entry, rates, twin

SEED, DECAY = 7, 0.1


@dataclass
class Loop:
    """Hand-written training: shuffled epochs, accumulation, clipping, AdamW, a rate that is a function of the step."""

    model: Any
    data: Tokens
    end: int
    rate: float = 1e-2
    batch: int = 4
    accum: int = 1
    warmup: int = 0
    anchor: int = 0
    kind: str = "linear"
    step: int = 0

    def __post_init__(self) -> None:
        still = ("bias", "ln_", "wte", "wpe")
        decayed = [p for n, p in self.model.named_parameters() if not any(part in n for part in still)]
        rest = [p for n, p in self.model.named_parameters() if any(part in n for part in still)]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer: Any = torch.optim.AdamW(groups, lr=self.rate, eps=1e-8, fused=True)

    def run(self, changes: dict[int, Callable[[Loop], None]]) -> Iterator[tuple[float, float]]:
        """Loss and learning rate of every step; `changes` are made when so many steps are done."""
        epoch, position = 0, 0
        while self.step < self.end:
            if self.step in changes:
                changes[self.step](self)
            order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(SEED + epoch))
            starts = range(position, len(self.data), self.batch)[: self.accum]
            batches = [self.data.tokens[order[start : start + self.batch]] for start in starts]
            position = min(len(self.data), position + self.batch * self.accum)
            if position == len(self.data):
                epoch, position = epoch + 1, 0
            yield self.update(batches)

    def update(self, batches: list[torch.Tensor]) -> tuple[float, float]:
        rate = self.rate * factor(self.kind, self.step - self.anchor, self.warmup, self.end - self.anchor)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        predicted = sum(batch[:, 1:].numel() for batch in batches)
        total = 0.0
        for batch in batches:
            logits = self.model(input_ids=batch).logits[:, :-1].float()
            # Summed in the order of the stock loss, whose last position of each row is ignored, so that bits agree.
            labels = F.pad(batch[:, 1:], (0, 1), value=-100)
            padded = torch.cat([logits, logits[:, -1:].detach()], dim=1)
            loss = F.cross_entropy(padded.flatten(0, 1), labels.flatten(), reduction="sum") / predicted
            loss.backward()
            total = total + loss.detach()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return float(total), rate

    def morph(self, **operation: Any) -> None:
        self.model, self.optimizer, _ = morph(self.model, operation, optimizer=self.optimizer, seed=SEED)
        self.model.train()


def factor(kind: str, t: int, warmup: int, total: int) -> float:
    """The learning rate's factor `t` steps after the schedule began: textbook formulas."""
    if kind != "inverse_sqrt" and t < warmup:
        return t / max(1, warmup)
    done = (t - warmup) / max(1, total - warmup)
    if kind == "constant_with_warmup":
        return 1.0
    if kind == "linear":
        return max(0.0, (total - t) / max(1, total - warmup))
    if kind == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
    if kind == "cosine_with_restarts":  # two cycles
        return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * ((2 * done) % 1)))
    if kind == "cosine_with_min_lr":  # min_lr_rate 0.1
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
    if kind == "inverse_sqrt":
        return t / warmup if t < warmup else math.sqrt(warmup / t)
    if kind == "warmup_stable_decay":  # 5 steps of decay, down to 0
        into = max(0, t - (total - 5)) / 5
        return 0.5 * (1 + math.cos(math.pi * into))
    raise AssertionError(kind)


KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 5},
}


def compare(folder: Path, schedule: list[Any], changes: dict[int, Callable[[Loop], None]], **options: Any) -> None:
    """Train both ways in float64 and compare every loss, every rate and the final weights, bit for bit."""
    values = {"max_steps": 20, "warmup_steps": 0, "gradient_accumulation_steps": 1, **options}
    model, data = tiny_model().double(), Tokens(41)
    ours = trainer(folder, schedule, model, data=data, eval_strategy="no", weight_decay=DECAY, **values)
    loop = Loop(
        twin(model).train(),
        data,
        end=values["max_steps"],
        accum=values["gradient_accumulation_steps"],
        warmup=values["warmup_steps"],
        kind=values.get("lr_scheduler_type", "linear"),
    )
    ours.train()
    expected = list(loop.run(changes))
    assert losses(ours) == [loss for loss, _ in expected]
    assert rates(ours) == pytest.approx([rate for _, rate in expected], rel=1e-12, abs=1e-18)
    for name, parameter in loop.model.named_parameters():
        torch.testing.assert_close(weights(ours)[name], parameter.detach(), rtol=1e-9, atol=1e-12)


def sets(**values: Any) -> Callable[[Loop], None]:
    def change(loop: Loop) -> None:
        for name, value in values.items():
            setattr(loop, name, value)

    return change


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate(tmp_path: Path, kind: str) -> None:
    schedule = [
        entry("change_lr", 0.5, 4),
        entry("set_warmup_iters", 4, 3),
        entry("change_warmup_iters", 1.5, 1),
        entry("reset_lr_schedule", None, 2),
        entry("set_lr", 4e-3, 3),
    ]
    changes = {
        4: sets(rate=5e-3),
        7: sets(warmup=4),
        8: sets(warmup=6),
        10: sets(anchor=10),
        13: sets(rate=4e-3),
    }
    compare(tmp_path, schedule, changes, warmup_steps=3, lr_scheduler_type=kind, lr_scheduler_kwargs=KINDS[kind])


def test_batch_size_and_accumulation(tmp_path: Path) -> None:
    """Accumulation 3 times 1.7 is 5 micro-batches, and times 0.5 then 2: what is computed follows."""
    schedule = [
        entry("change_batch_size", 1.6, 2),
        entry("change_grad_accum", 1.7, 2),
        entry("set_batch_size", 2, 3),
        entry("change_grad_accum", 0.5, 2),
        entry("set_grad_accum", 3, 2),
    ]
    changes = {2: sets(batch=6), 4: sets(accum=5), 7: sets(batch=2), 9: sets(accum=2), 11: sets(accum=3)}
    compare(tmp_path, schedule, changes, gradient_accumulation_steps=3)


@pytest.mark.parametrize("init", ["copy", "identity"])
def test_stack(tmp_path: Path, init: str) -> None:
    schedule = [entry("stack_layers", 2, 5, init=init)]
    compare(tmp_path, schedule, {5: lambda loop: loop.morph(name="stack_layers", value=2, init=init)})


def test_widen(tmp_path: Path) -> None:
    compare(tmp_path, [entry("widen_mlp", 1.5, 6)], {6: lambda loop: loop.morph(name="widen_mlp", value=1.5)})


def test_freeze_reset_and_everything_together(tmp_path: Path) -> None:
    schedule = [
        entry("widen_mlp", 2, 3),
        entry("freeze_layer", ["attn.0", "wpe"], 1),
        entry("change_grad_accum", 1.5, 1),
        entry("stack_layers", 2, 2),
        entry("reset_optimizer_state", ["mlp.*"], 2),
        entry("change_lr", 0.5, 1),
        entry("unfreeze_layer", "attn.0", 2),
        entry("reset_optimizer_state", None, 2),
        entry("reset_lr_schedule", None, 1),
    ]
    changes: dict[int, Callable[[Loop], None]] = {
        3: lambda loop: loop.morph(name="widen_mlp", value=2),
        4: lambda loop: loop.morph(name="freeze_layer", value=["attn.0", "wpe"]),
        5: sets(accum=3),
        7: lambda loop: loop.morph(name="stack_layers", value=2),
        9: lambda loop: loop.morph(name="reset_optimizer_state", value=["mlp.*"]),
        10: sets(rate=5e-3),
        12: lambda loop: loop.morph(name="unfreeze_layer", value="attn.0"),
        14: lambda loop: loop.morph(name="reset_optimizer_state", value=None),
        15: sets(anchor=15),
    }
    compare(tmp_path, schedule, changes, gradient_accumulation_steps=2, warmup_steps=2)
