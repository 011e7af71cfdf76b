"""A transplant of sharded tensors: one whole tensor at a time, and of what becomes of it the own rows only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from morphing_trainer.lineage.factors import Directions, decompose
from morphing_trainer.lineage.lineage import Descent, Merged, Newborn, Origin, Product, Truncated
from morphing_trainer.lineage.rows import has_newborn_entries, restricted
from morphing_trainer.lineage.transplant import MOMENT_ORDER, State, Whole, moved_moment
from morphing_trainer.sharding.tensors import as_shard, first_ones, gathered, local_part, own_rows, whole

Settle = Callable[[BaseException | None], None]
"""Ends a piece of work that all processes have tried: all go on, or all raise (`Consensus.settle`)."""


class ShardedMover:
    """Moves along a lineage what is divided among processes. All of them must move the same, in the same order.

    At any time there are the old shards, the new ones so far, and one old tensor as a whole; where random numbers are
    drawn, also the new tensor as a whole.

    Args:
        old: old parameter name -> tensor, sharded or not.
        targets: new parameter name -> a tensor of its shape, divided as it is to be; on the meta device.
        settle: see `Settle`. A process that fails must not leave the others waiting for its rows.
    """

    def __init__(self, old: Mapping[str, Tensor], targets: Mapping[str, Tensor], settle: Settle) -> None:
        self._old = old
        self._targets = targets
        self._settle = settle
        self._here: dict[str, Tensor] = {}
        self._computed = Whole(self._here)

    def weight(self, name: str, origin: Origin) -> Tensor:
        """The new weight of a parameter that changes."""
        self._gather(_needed(origin))
        try:
            if isinstance(origin, Truncated) or (isinstance(origin, Merged) and origin.beyond):
                self._decompose(origin.product)
            moved: Tensor = self._agreed(lambda: self._weight(name, origin))
            return moved
        finally:
            self._here.clear()

    def moment(self, name: str, key: str, value: Any, origin: Descent, state: State) -> Any:
        """A piece of optimizer state of a parameter that changes."""
        target = self._targets[name]
        if not isinstance(value, DTensor) or not isinstance(target, DTensor):
            return self._agreed(lambda: moved_moment(key, value, origin, state))
        self._reserve(value)
        full = whole(value)
        rows = own_rows(target)
        # New entries get the mean of the others, of all rows.
        averages = MOMENT_ORDER.get(key) == 2 and has_newborn_entries(origin)
        part = None if averages else restricted(origin, target.shape, rows)

        def moved() -> Tensor:
            if isinstance(part, Descent):
                new = moved_moment(key, full, part, state)
            else:
                new = moved_moment(key, full, origin, state)[rows.start : rows.stop].clone()
            return as_shard(new.to(value.to_local().device), target)

        return self._agreed(moved)

    def _weight(self, name: str, origin: Origin) -> Tensor:
        target = self._targets[name]
        if isinstance(origin, Newborn):  # of its like only type and device matter
            origin = replace(origin, shape=tuple(target.shape))
            self._here[origin.like] = local_part(self._old[origin.like])
        if not isinstance(target, DTensor):
            return self._computed.weight(name, origin)
        rows, kin = own_rows(target), self._old[origin.like if isinstance(origin, Newborn) else origin.ancestor]
        device = local_part(kin).device
        if isinstance(origin, Merged):  # of the weight itself the own rows are enough
            local = local_part(kin).detach()
            return as_shard(self._computed.factors.merged(origin, local.to(self._near(kin)), rows).to(device), target)
        part = restricted(origin, target.shape, rows)
        if part is not None:
            return as_shard(self._computed.weight(name, part).to(device), target)
        return as_shard(self._computed.weight(name, origin)[rows.start : rows.stop].clone().to(device), target)

    def _decompose(self, product: Product) -> None:
        """Let all processes use one decomposition: their libraries may choose other signs, and rows would not fit."""
        factors = self._computed.factors
        if factors.knows(product):
            return
        found: Directions = self._agreed(lambda: decompose(self._here[product.a], self._here[product.b]))
        factors.learn(product, Directions(*map(first_ones, (found.left, found.values, found.right))))

    def _near(self, tensor: Tensor) -> torch.device:
        """The device that processes meet on."""
        return torch.device(tensor.device_mesh.device_type) if isinstance(tensor, DTensor) else tensor.device

    def _gather(self, names: list[str]) -> None:
        self._here.clear()
        for name in names:
            self._reserve(self._old[name])
            self._here |= gathered(self._old, [name])

    def _reserve(self, tensor: Tensor) -> None:
        """Fail here, on all processes, where there is no room for a whole tensor."""

        def tried() -> None:
            torch.empty(tensor.shape, dtype=tensor.dtype, device=self._near(tensor))

        if isinstance(tensor, DTensor):
            self._agreed(tried)

    def _agreed(self, work: Callable[[], Any]) -> Any:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # of any kind: the other processes must not wait for this one in vain
            failure = error
        self._settle(failure)
        return result


def _needed(origin: Origin) -> list[str]:
    """Names of the old tensors that the new one is computed from as a whole."""
    match origin:
        case Newborn():
            return []
        case Merged(product=product) | Truncated(product=product):
            return [product.a, product.b]
        case Descent(ancestor):
            return [ancestor]
