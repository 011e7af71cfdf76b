"""Frozen, thawed and newborn parameters under DDP, which must not have to look for unused ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from tests.support import Tokens, tiny_model, trainer
from tests.trainer.common import entry
from tests.trainer.program import finish, started

MORPHS = [
    entry("stack_layers", [0, 1, 1], 1, init="identity"),
    entry("widen_mlp", 1.5, 1, split="newborn"),
    entry("set_attn_lora_rank", 3, 1),
    entry("freeze_layer", "mlp.*", 1),
    entry("unfreeze_layer", "mlp.0", 1),
]
PATTERNS: dict[str, Callable[[str], bool]] = {
    "everything": lambda name: True,
    "all of a layer frozen": lambda name: ".h.0." not in name,
    "everything but a bias frozen": lambda name: name == "transformer.h.1.mlp.c_fc.bias",
    "embeddings frozen": lambda name: "wte" not in name and "wpe" not in name,
    "embeddings only": lambda name: "wte" in name or "wpe" in name,
    "layer norms only": lambda name: ".ln_" in name,
    "the last layer norm only": lambda name: ".ln_f." in name,
    "adapters only": lambda name: ".lora_" in name,
}
"""What is trained, by parameter name."""


@dataclass(frozen=True)
class Patterns:
    folder: Path
    names: tuple[str, ...]


class Looks(TrainerCallback):
    """What DDP was told, and which trained parameters got no gradient, at every step."""

    def __init__(self) -> None:
        self.trainer: MorphingTrainer | None = None
        self.unused: set[bool] = set()
        self.without: set[str] = set()
        self.models: set[int] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        wrapped = self.trainer.model_wrapped
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        self.unused.add(wrapped.find_unused_parameters)
        parameters = dict(self.trainer.bare_model.named_parameters())
        self.without |= {name for name, each in parameters.items() if each.requires_grad and each.grad is None}
        self.models.add(sum(each.numel() for each in parameters.values()))


def go(job: Patterns, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    log = os.open(job.folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    found = {}
    for number, name in enumerate(job.names):
        model: Any = tiny_model()
        if name == "adapters only":
            model = add_adapters(model, LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4))
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and PATTERNS[name](parameter_name))
        looks = Looks()
        options = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        options |= {"eval_strategy": "no", "eval_steps": None, "ddp_backend": "gloo", "disable_tqdm": True}
        # 13 samples: the last step of an epoch leaves a rank without one.
        made = trainer(job.folder / str(number), MORPHS, model, callbacks=[looks], data=Tokens(13), **options)
        looks.trainer = made
        made.train()
        found[name] = {
            "unused": sorted(looks.unused),
            "without": sorted(looks.without),
            "sizes": len(looks.models),
            "steps": made.state.global_step,
        }
    (job.folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def test_every_pattern_trains_without_looking_for_unused_parameters(tmp_path: Path) -> None:
    job = Patterns(tmp_path, tuple(PATTERNS))
    codes = finish(started(go, job, 2), 200)
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-3000:] + (tmp_path / "1.log").read_text()[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in PATTERNS:
            assert found[name] == {"unused": [False], "without": [], "sizes": 4, "steps": 6}, name


@pytest.mark.parametrize(("given", "expected"), [(None, False), (True, True), (False, False)])
def test_who_wants_it_can_have_it(tmp_path: Path, given: bool | None, expected: bool) -> None:
    options = {} if given is None else {"ddp_find_unused_parameters": given}
    assert trainer(tmp_path, **options).args.ddp_find_unused_parameters is expected
