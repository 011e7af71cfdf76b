"""LoRA adapters in words. Facts without `lora_rank` and `lora_modules` (older journals) are those of no adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FACTS = ("lora_rank", "lora_modules")


def adapters_text(facts: Mapping[str, Any], *, short: bool = False) -> str:
    """`rank 8 on 24 modules` (the largest rank; `short`: `rank 8 on 24`); empty where there are no adapters."""
    rank, modules = (facts.get(key, 0) for key in FACTS)
    if not (rank and modules):
        return ""
    return f"rank {rank} on {modules}" + ("" if short else " module" if modules == 1 else " modules")


def adapter_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], *, short: bool = False
) -> list[tuple[str, str]]:
    """(name, `old -> new`) of adapters that came, went, or are of another largest rank or number."""
    old, new = (adapters_text(facts, short=short) for facts in (before, after))
    if old and new:
        names = zip(("LoRA rank", "LoRA modules"), FACTS, strict=True)
        return [(name, f"{before[key]} -> {after[key]}") for name, key in names if before[key] != after[key]]
    return [("LoRA", f"{old or 'none'} -> {new or 'none'}")] if old or new else []
