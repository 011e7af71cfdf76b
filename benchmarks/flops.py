"""Training FLOPs by what runs: one forward and backward pass per phase, counted by `torch.utils.flop_counter`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.journal import effective, read_journal


@cache
def _counted(description: str, length: int) -> int:
    data = json.loads(description)
    data["config"]["attn_implementation"] = "eager"  # the counter sees its matrix products on every device
    spec = ModelSpec.from_dict(data)
    model = spec.build("meta")  # shapes are all that counts
    tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        # With a mask, nothing looks into the tokens for packed samples.
        model(tokens, attention_mask=torch.ones_like(tokens), labels=tokens).loss.backward()
    return int(counter.get_total_flops())


def training_flops(spec: Mapping[str, Any], length: int) -> int:
    """FLOPs of forward and backward over one sample of `length` tokens; frozen parts take no weight gradient."""
    return _counted(json.dumps(spec, sort_keys=True), length)


def run_flops(folder: Path, length: int) -> int:
    """FLOPs of a finished run, from its journal: phase by phase, with the batch and the shape that each had."""
    events: Sequence[Mapping[str, Any]] = effective(read_journal(folder / "journal.jsonl"))
    total, step = 0, 0
    spec, settings = events[0]["spec"], events[0]["settings"]
    for event in events:
        if event["event"] not in ("operation", "end"):
            continue
        samples = (event["step"] - step) * settings["batch_size"] * settings["grad_accum"]
        total += samples * training_flops(spec, length)
        step, spec = event["step"], event["spec"]
        if event["event"] == "operation":
            settings = {name: event["record"]["after"][name] for name in settings}
    return total
