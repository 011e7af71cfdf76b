"""Transplant: move weights and optimizer state along a lineage. Full tensors in, full tensors out.

An unchanged tensor is handed on as it is; only what changed is allocated. Nothing old is modified.

The rule for the optimizer: where a new entry's gradient is s times its ancestor's, a moment of order p scales
by s**p (Adam: exp_avg by s, exp_avg_sq by s**2) and `step` is carried. A parameter that is new as a whole has no state:
the optimizer starts it with its own step 0, because moments of zero under an old `step` would make the first updates
several times too large. An entry that is new inside an old tensor gets first moment 0 and, for the same
reason, the mean of the tensor's second moments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage.factors import Factors
from morphing_trainer.lineage.lineage import (
    NEWBORN,
    AxisMap,
    Descent,
    Fill,
    Lineage,
    Merged,
    Newborn,
    Origin,
    Truncated,
)

State = Mapping[str, Any]
"""Optimizer state of one parameter, e.g. `{"step", "exp_avg", "exp_avg_sq"}`."""

MOMENT_ORDER = {
    "exp_avg": 1,
    "momentum_buffer": 1,
    "grad_avg": 1,
    "exp_avg_sq": 2,
    "max_exp_avg_sq": 2,
    "square_avg": 2,
    "sum": 2,
}
"""Per-entry optimizer state -> its order in the gradient."""

_PIECE = 1 << 18
"""Random numbers drawn at a time."""


@dataclass(frozen=True)
class Census:
    """What became of the optimizer's moments, in scalars of trainable parameters."""

    carried: int = 0
    scaled: int = 0
    newborn: int = 0
    dropped: int = 0


def has_no_rule(key: str, value: Any) -> bool:
    """Whether a piece of optimizer state belongs to entries, and cannot follow them into another shape."""
    return isinstance(value, Tensor) and value.ndim > 0 and key not in MOMENT_ORDER


class Mover(Protocol):
    """Computes what changes in a transplant. The default is `Whole`; `sharding` has one for divided tensors."""

    def weight(self, name: str, origin: Origin) -> Tensor:
        """The new weight of parameter `name`."""

    def moment(self, name: str, key: str, value: Any, origin: Descent, state: State) -> Any:
        """What becomes of `value`, the piece `key` of the `state` of its ancestor."""


class Whole:
    """Computes new tensors from whole old ones.

    Args:
        old: old parameter name -> weight.
    """

    def __init__(self, old: Mapping[str, Tensor]) -> None:
        self._old = old
        self.factors = Factors(old)

    def weight(self, name: str, origin: Origin) -> Tensor:
        match origin:
            case Newborn(like):
                return _newborn(self._old[like].detach(), origin)
            case Merged():
                return self.factors.merged(origin)
            case Truncated():
                return self.factors.truncated(origin)
            case Descent(ancestor):
                return _weight(self._old[ancestor].detach(), origin)

    def moment(self, name: str, key: str, value: Any, origin: Descent, state: State) -> Any:
        return moved_moment(key, value, origin, state)


def transplant_weights(lineage: Lineage, old: Mapping[str, Tensor], mover: Mover | None = None) -> dict[str, Tensor]:
    """The new model's weights from the old ones, by name; unchanged ones are views of the same storage."""
    mover = mover or Whole(old)
    moved: set[str] = set()
    new: dict[str, Tensor] = {}
    for name, origin in lineage.origins.items():
        if not isinstance(origin, Descent) or origin.maps:
            new[name] = mover.weight(name, origin)
            continue
        tensor = old[origin.ancestor].detach()
        new[name] = tensor.clone() if origin.ancestor in moved else tensor
        moved.add(origin.ancestor)
    return new


def transplant_states(
    lineage: Lineage,
    old: Mapping[str, State],
    sizes: Mapping[str, int],
    frozen: Collection[str],
    mover: Mover | None = None,
) -> tuple[dict[str, dict[str, Any]], Census]:
    """The new parameters' optimizer state, and a census of it.

    Args:
        lineage: where the new parameters come from.
        old: old parameter name -> its optimizer state; parameters without state are absent.
        sizes: new parameter name -> number of scalars.
        frozen: new parameters that are not trained: they get no state.
        mover: computes the moments of parameters that change.

    Raises:
        OperationError: if a tensor changes whose optimizer state has no rule.
    """
    mover = mover or Whole({})
    moved: set[str] = set()
    new: dict[str, dict[str, Any]] = {}
    trained: set[str] = set()
    carried = scaled = newborn = 0
    for name, origin in lineage.origins.items():
        if name in frozen:
            continue
        if isinstance(origin, Descent):
            trained.add(origin.ancestor)
        state = old.get(origin.ancestor) if isinstance(origin, Descent) and origin.moments == "carried" else None
        if not state:
            newborn += sizes[name]
            continue
        assert isinstance(origin, Descent)
        if origin.maps:
            new[name] = {key: mover.moment(name, key, value, origin, state) for key, value in state.items()}
            live, plain = _tally(origin.maps, sizes[name])
            carried, scaled, newborn = carried + plain, scaled + live - plain, newborn + sizes[name] - live
        else:
            # `step` is updated in place, so two copies must not share it.
            new[name] = {key: _copied(value) if origin.ancestor in moved else value for key, value in state.items()}
            carried += sizes[name]
        moved.add(origin.ancestor)
    dropped = sum(_size(state) for name, state in old.items() if name not in trained)
    return new, Census(carried, scaled, newborn, dropped)


def _newborn(like: Tensor, origin: Newborn) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32) if origin.wide else like.dtype
    return _filled(torch.empty(origin.shape or like.shape, dtype=dtype, device=like.device), origin.fill)


def _weight(old: Tensor, origin: Descent) -> Tensor:
    new = _gather(old, origin.maps, "weight", 1)
    for entry in origin.maps:
        born = entry.source == NEWBORN
        if origin.fill.std and bool(born.any()):
            index = born.nonzero().squeeze(1).to(new.device)
            drawn = _filled(torch.empty_like(new.index_select(entry.dim, index)), origin.fill)
            new.index_copy_(entry.dim, index, drawn)
        if origin.noise is not None:
            index = _repeated(entry.source).to(new.device)
            copies = new.index_select(entry.dim, index)
            noise = _filled(torch.empty_like(copies), Fill(origin.noise.std, origin.noise.seed))
            new.index_add_(entry.dim, index, noise * old.std())
    return new


def moved_moment(key: str, value: Any, origin: Descent, state: State) -> Any:
    """A piece of the optimizer's `state` of an ancestor, for its descendant.

    Raises:
        OperationError: if there is no rule for it.
    """
    if not isinstance(value, Tensor) or value.ndim == 0:
        return _copied(value)
    if has_no_rule(key, value):
        raise OperationError(
            f"optimizer: its state {key!r} has no rule for a parameter that changes shape ({origin.ancestor}). "
            f"Known are {', '.join(MOMENT_ORDER)}; use an optimizer such as AdamW, Adam, SGD, RMSprop or Adagrad."
        )
    # RMSprop divides by the root of `square_avg` before it averages, so its buffer does not know the gradient's scale.
    order = 0 if key == "momentum_buffer" and "square_avg" in state else MOMENT_ORDER[key]
    new = _gather(value, origin.maps, "grad", order)
    live, _ = _tally(origin.maps, new.numel())
    if order == 2 and 0 < live < new.numel():
        mean = float(new.sum(dtype=torch.float64)) / live
        for entry in origin.maps:
            new.index_fill_(entry.dim, (entry.source == NEWBORN).nonzero().squeeze(1).to(new.device), mean)
    return new


def _gather(old: Tensor, maps: tuple[AxisMap, ...], kind: Literal["weight", "grad"], power: int) -> Tensor:
    """`old` with every map applied: entries gathered, scaled by factor**power, newborn ones 0. Always a new tensor."""
    for entry in maps:
        factors = entry.weight if kind == "weight" else entry.grad
        old = _take(old, entry.dim, entry.source, None if factors is None else factors**power)
    return old


def _take(old: Tensor, dim: int, source: Tensor, factors: Tensor | None) -> Tensor:
    """Gather along `dim`, times `factors`, newborn entries 0, in one new tensor and no temporary one."""
    shape = list(old.shape)
    shape[dim] = len(source)
    new = old.new_empty(shape)
    source = source.to(old.device)
    torch.index_select(old, dim, source.clamp(min=0), out=new)
    if factors is not None:
        # Half precision would round the factors themselves; the product is rounded once.
        wide = torch.float64 if old.dtype == torch.float64 else torch.float32
        new.mul_(factors.to(device=old.device, dtype=wide).view([-1 if d == dim else 1 for d in range(old.ndim)]))
    born = (source == NEWBORN).nonzero().squeeze(1)
    return new.index_fill_(dim, born, 0) if len(born) else new


def _filled(tensor: Tensor, fill: Fill) -> Tensor:
    if not fill.std:
        return tensor.zero_()
    # Drawn on the CPU, in float64, so that every device, rank and dtype gets the same numbers; piece by piece, which
    # gives the same numbers as at once, as long as no piece is smaller than what the generator makes at a time.
    generator = torch.Generator().manual_seed(fill.seed)
    flat, start = tensor.view(-1), 0
    while start < len(flat):
        end = len(flat) if len(flat) - start < 2 * _PIECE else start + _PIECE
        drawn = torch.randn(end - start, dtype=torch.float64, generator=generator)
        flat[start:end] = drawn.mul_(fill.std)
        start = end
    return tensor


def _repeated(source: Tensor) -> Tensor:
    """Positions whose ancestor has occurred before."""
    seen: set[int] = set()
    positions = []
    for position, old in enumerate(source.tolist()):
        if old in seen:
            positions.append(position)
        seen.add(old)
    return torch.tensor(positions, dtype=torch.int64)


def _tally(maps: tuple[AxisMap, ...], size: int) -> tuple[int, int]:
    """Of a descendant's scalars: how many have an ancestor, and how many of those keep their moments unscaled."""
    live = plain = size
    for entry in maps:
        total = len(entry.source) or 1  # none where only some rows are computed, and there are fewer than processes
        has_ancestor = entry.source != NEWBORN
        unscaled = has_ancestor if entry.grad is None else has_ancestor & (entry.grad == 1)
        live = live * int(has_ancestor.sum()) // total
        plain = plain * int(unscaled.sum()) // total
    return live, plain


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _size(state: State) -> int:
    return max((value.numel() for value in state.values() if isinstance(value, Tensor)), default=0)
