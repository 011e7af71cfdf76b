"""What the weights look like from inside: how many directions they use, and how far they have turned.

Pure functions of tensors. They are run outside the training step, every so many evaluations (`analysis_evals`).

Effective rank: exp of the entropy of the singular values, normalised to sum 1 (Roy and Vetterli, "The effective rank:
a measure of effective dimensionality", EUSIPCO 2007). It is 1 for one direction and n for n equal ones.
Cosine drift: 1 - cos of the angle between a weight, as one long vector, and what it was. 0 is unmoved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.finite import all_finite

KINDS = ("attn", "mlp", "wte", "wpe")
"""Components whose matrices are looked at, beside the adapters."""

_CHUNK = 1 << 22
"""Entries that are widened to float64 at a time."""


@dataclass(frozen=True)
class Measure:
    """One matrix, or one adapter's product.

    Attributes:
        kind: one of `KINDS`, or "adapter".
        effective: effective rank; 0 for a matrix of zeros, NaN for one that is not finite.
        full: the rank that it could have: the smaller side of a matrix, the rank of an adapter.
        since_start, since_operation: cosine drift, None where it is not known.
    """

    kind: str
    effective: float
    full: int
    since_start: float | None = None
    since_operation: float | None = None

    @property
    def share(self) -> float:
        return self.effective / self.full


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of singular values (n,), normalised to sum 1."""
    values = values.double()
    total = float(values.sum())
    if not math.isfinite(total):
        return math.nan
    if total == 0:
        return 0.0
    shares = values / total
    shares = shares[shares > 0]
    return math.exp(-float((shares * shares.log()).sum()))


def singular_values(weight: Tensor) -> Tensor:
    """(min(m, n),) of a matrix (m, n), in float32 at least; NaN throughout if it is not finite."""
    weight = _wide(weight.detach())
    if not all_finite(weight):
        return weight.new_full((min(weight.shape),), math.nan)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    # Of a vocabulary there is far more than there are directions: only its triangle is decomposed.
    core = torch.linalg.qr(tall, mode="r").R if tall.shape[0] >= 2 * tall.shape[1] else tall
    values: Tensor = torch.linalg.svdvals(core)
    return values


def product_values(a: Tensor, b: Tensor) -> Tensor:
    """(r,) singular values of B A, from QR of the thin matrices and a core of (r, r).

    Args:
        a: (r, in). b: (out, r).
    """
    a, b = _wide(a.detach()), _wide(b.detach())
    if not (all_finite(a) and all_finite(b)):
        return a.new_full((a.shape[0],), math.nan)
    left, right = torch.linalg.qr(b, mode="r").R, torch.linalg.qr(a.T, mode="r").R
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def cosine_drift(now: Tensor, then: Tensor) -> float | None:
    """1 - cos between two tensors of one shape, in float64; None if one of them is zero or not finite.

    `now` is rounded to the type of `then` first, so that what has not moved has a drift of exactly 0.
    """
    dot = square_now = square_then = 0.0
    for left, right in zip(now.detach().flatten().split(_CHUNK), then.flatten().split(_CHUNK), strict=True):
        left, right = left.to(then.dtype).double(), right.to(left.device).double()
        dot += float(left @ right)
        square_now += float(left @ left)
        square_then += float(right @ right)
    length = math.sqrt(square_now * square_then)  # of equal vectors exactly their dot product
    return max(0.0, 1 - dot / length) if length > 0 and math.isfinite(length) and math.isfinite(dot) else None


def watched(spec: ModelSpec) -> dict[str, str]:
    """Parameter name -> kind, of all matrices of `KINDS`. Under an adapter it is the weight without the product."""
    architecture = spec.architecture
    found: dict[str, str] = {}
    for component in architecture.component_names(spec.config):
        kind = component.partition(".")[0]
        if kind in KINDS:
            names = spec.expand(component)
            found |= {name: kind for name in names if len(spec.shapes[name]) == 2 and not spec.adapter_at(name)}
    return {name: found[name] for name in spec.shapes if name in found}


def measure(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    start: Mapping[str, Tensor] | None = None,
    since: Mapping[str, Tensor] | None = None,
) -> dict[str, Measure]:
    """Parameter name, or name of an adapted module, -> its measure.

    Args:
        weights: all parameters, by name.
        start, since: what weights were at the start, and at the last operation.
    """

    def drift(name: str, references: Mapping[str, Tensor] | None) -> float | None:
        then = (references or {}).get(name)
        return None if then is None or then.shape != weights[name].shape else cosine_drift(weights[name], then)

    found: dict[str, Measure] = {}
    for name, kind in watched(spec).items():
        rank = effective_rank(singular_values(weights[name]))
        found[name] = Measure(kind, rank, min(weights[name].shape), drift(name, start), drift(name, since))
    for module, site in spec.sites.items():
        adapter = spec.adapter_names(module)
        values = product_values(weights[adapter.a], weights[adapter.b])
        found[module] = Measure("adapter", effective_rank(values), site.rank)
    return found


def rank_use(found: Mapping[str, Measure]) -> float | None:
    """Share of their rank that adapters use, the mean over all adapters; None where there are none.

    An adapter that has not moved yet (B A = 0) uses nothing. One that is not finite makes it NaN.
    """
    shares = [entry.share for entry in found.values() if entry.kind == "adapter"]
    return sum(shares) / len(shares) if shares else None


def summary(found: Mapping[str, Measure]) -> dict[str, float]:
    """`analysis/...` -> number, for the log: means over each kind, and every adapter's share of its rank."""
    lines: dict[str, float] = {}
    for kind in KINDS:
        entries = [entry for entry in found.values() if entry.kind == kind]
        if not entries:
            continue
        lines[f"analysis/rank_{kind}"] = _mean([entry.effective for entry in entries])
        lines[f"analysis/rank_share_{kind}"] = _mean([entry.share for entry in entries])
        for label, field in (("start", "since_start"), ("operation", "since_operation")):
            drifts = [value for entry in entries if (value := getattr(entry, field)) is not None]
            if drifts:
                lines[f"analysis/drift_{label}_{kind}"] = _mean(drifts)
    if (use := rank_use(found)) is not None:
        lines["analysis/rank_use"] = use
    return lines | {
        f"analysis/rank_use/{short(name)}": entry.share for name, entry in found.items() if entry.kind == "adapter"
    }


def compact(found: Mapping[str, Measure]) -> dict[str, list[float | None]]:
    """For the journal: short name -> [effective rank, full rank, drift since start, since operation], 4 digits."""
    return {
        short(name) + (" adapter" if it.kind == "adapter" else ""): [
            _rounded(value) for value in (it.effective, it.full, it.since_start, it.since_operation)
        ]
        for name, it in found.items()
    }


def short(name: str) -> str:
    return name.removeprefix("transformer.").removesuffix(".weight").removesuffix(".base_layer")


def _rounded(value: float | None) -> float | None:
    return value if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
