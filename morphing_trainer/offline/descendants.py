"""The tensors of a model that is not there: each is computed when it is asked for, and kept by nobody.

What several operations make of a model is a chain of these, one for each, over what is on the disk. A tensor that
several descend from is computed for each of them: time is spent where memory would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lineage.lineage import Descent, Lineage, Newborn, Truncated
from morphing_trainer.lineage.transplant import Whole

_KEPT = 4
"""Matrices of adapters that are not computed again: of a smaller rank's, each descends from both of the one before, so
that a long chain would compute the first ones thousands of times."""


class Tensors(Mapping[str, Tensor]):
    """Tensors by parameter name, each read or computed anew when it is asked for.

    Attributes:
        shapes: name -> type and shape, in the model's order; for these nothing is read.
    """

    def __init__(self, shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class Descendants(Tensors):
    """What an operation makes of tensors.

    Args:
        lineage: where the new ones come from.
        spec: the new model.
        old: the tensors before.
    """

    def __init__(self, lineage: Lineage, spec: ModelSpec, old: Tensors) -> None:
        super().__init__({name: (_type_of(lineage, name, old), shape) for name, shape in spec.shapes.items()})
        self._lineage = lineage
        self._old = old
        self._whole = Whole(old)
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        origin = self._lineage.origins[name]
        if isinstance(origin, Descent) and not origin.maps:
            return self._old[origin.ancestor]
        if isinstance(origin, Newborn):  # of its like only the type matters
            blank = torch.empty(0, dtype=self._old.shapes[origin.like][0])
            born = replace(origin, shape=tuple(self.shapes[name][1]))
            return Whole({origin.like: blank}).weight(name, born)
        if not isinstance(origin, Truncated):
            return self._whole.weight(name, origin)
        if name not in self._kept:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[name] = self._whole.weight(name, origin)
        return self._kept[name]


def _type_of(lineage: Lineage, name: str, old: Tensors) -> torch.dtype:
    origin = lineage.origins[name]
    dtype = old.shapes[lineage.kin(name)][0]
    is_wide = isinstance(origin, Newborn) and origin.wide
    return torch.promote_types(dtype, torch.float32) if is_wide else dtype
