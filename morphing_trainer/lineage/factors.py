"""The numbers behind merges and rank changes: thin products and factors, never a full-size decomposition.

Everything is computed in float32 at least.

Shapes: r old rank, k new rank, A (r, in), B (out, r), product B A (out, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from morphing_trainer.lineage.lineage import Lineage, Merged, Product, Truncated


@dataclass(frozen=True, eq=False)
class Directions:
    """Singular value decomposition of a product: left (out, r), values (r,), largest first, and right (r, in)."""

    left: Tensor
    values: Tensor
    right: Tensor


class Factors:
    """The products of one transplant; each is decomposed once, though three new tensors in a row descend from it."""

    def __init__(self, old: Mapping[str, Tensor]) -> None:
        self._old = old
        self._last: tuple[Product, Directions] | None = None

    def directions(self, product: Product) -> Directions:
        if not self.knows(product):
            self.learn(product, decompose(self._old[product.a].detach(), self._old[product.b].detach()))
        assert self._last is not None
        return self._last[1]

    def knows(self, product: Product) -> bool:
        return self._last is not None and self._last[0] == product

    def learn(self, product: Product, directions: Directions) -> None:
        """Use these, which somebody else has computed."""
        self._last = product, directions

    def merged(self, origin: Merged, weight: Tensor | None = None, rows: range | None = None) -> Tensor:
        """The weight plus the product, or plus what lies beyond its first `origin.beyond` directions.

        Args:
            weight, rows: of the weight only these rows, as they are stored, are given and wanted.
        """
        product = origin.product
        weight = self._old[origin.ancestor].detach() if weight is None else weight
        if origin.beyond:
            found = self.directions(product)
            left = found.left[:, origin.beyond :] * found.values[origin.beyond :]
            right = found.right[origin.beyond :]
        else:
            left, right = _wide(self._old[product.b].detach()), _wide(self._old[product.a].detach())
        if origin.transposed:
            left, right = right.T, left.T
        if rows is not None:
            left = left[rows.start : rows.stop]
        wide = weight.to(torch.promote_types(weight.dtype, left.dtype))  # which is wide already
        return torch.addmm(wide, left.to(wide.dtype), right.to(wide.dtype), alpha=product.scale).to(weight.dtype)

    def truncated(self, origin: Truncated) -> Tensor:
        """The new A (k, in) or B (out, k), with scale' B' A' = the first k directions of scale * B A."""
        found, product = self.directions(origin.product), origin.product
        old = self._old[origin.ancestor]
        length = float(torch.linalg.norm(_wide(self._old[origin.drawn].detach())) / len(found.values) ** 0.5) or 1.0
        values = found.values[: origin.rank] * (product.scale / origin.scale / length)
        is_drawn = origin.ancestor == origin.drawn
        if origin.ancestor == product.a:
            right = found.right[: origin.rank]
            return (right * length if is_drawn else right * values[:, None]).to(old.dtype).contiguous()
        left = found.left[:, : origin.rank]
        return (left * length if is_drawn else left * values).to(old.dtype).contiguous()


def decompose(a: Tensor, b: Tensor) -> Directions:
    """SVD of B A through QR of both and a core of (r, r).

    Args:
        a: (r, in). b: (out, r).
    """
    left, left_core = torch.linalg.qr(_wide(b))
    right, right_core = torch.linalg.qr(_wide(a).T)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Directions(left @ u, values, v @ right.T)


def cut(lineage: Lineage) -> dict[Product, int]:
    """The products that are truncated without merging the rest, and the rank that they are truncated to."""
    kept = {origin.product for origin in lineage.origins.values() if isinstance(origin, Merged)}
    return {
        origin.product: origin.rank
        for origin in lineage.origins.values()
        if isinstance(origin, Truncated) and origin.product not in kept
    }


def lost(lineage: Lineage, old: Mapping[str, Tensor]) -> tuple[float, float]:
    """Of the products that are truncated without merging the rest: Frobenius norm of what is lost, and of all."""
    factors = Factors(old)
    gone = whole = 0.0
    for product, rank in cut(lineage).items():
        values = factors.directions(product).values.double() * product.scale
        gone, whole = gone + float(values[rank:].square().sum()), whole + float(values.square().sum())
    return gone**0.5, whole**0.5


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
