"""What weights were at the start of a run and at its last operation, to tell how far they have turned since.

Copies in bfloat16 in the memory of the main process: 2 bytes for every weight that is analysed, and 2 more after the
first operation. A checkpoint holds them, so that a resumed run goes on to count from the same points.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from morphing_trainer.checkpoint.tensors import read_tensors
from morphing_trainer.lineage import Lineage
from morphing_trainer.lineage.lineage import Descent, Merged

FILE = "analysis.safetensors"


class References:
    """Immutable tensors, shared where both points are the same.

    Attributes:
        start: by parameter name, from the start, or from the operation that gave the weight its shape.
        since: from the last operation, or the start if there was none. Both are empty where they are not known: the run
            was resumed from a checkpoint that was saved without the analysis.
    """

    def __init__(self, start: Mapping[str, Tensor] | None = None, since: Mapping[str, Tensor] | None = None) -> None:
        self.start = dict(start or {})
        self.since = dict(self.start if since is None else since)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> References:
        """The run begins with these weights."""
        return cls({name: _copy(weight) for name, weight in weights.items()})

    def after(self, lineage: Lineage | None, weights: Mapping[str, Tensor]) -> References:
        """After an operation.

        A weight that was moved, copied as a whole or merged with its adapter keeps its ancestor's start. One that is
        new or has another shape starts here.

        Args:
            lineage: of the operation; None if it changed no tensor.
            weights: by parameter name, as the operation left them.
        """
        now = {name: _copy(weight) for name, weight in weights.items()}
        start: dict[str, Tensor] = {}
        for name, weight in now.items():
            origin = Descent(name) if lineage is None else lineage.origins[name]
            whole = isinstance(origin, Merged) or (isinstance(origin, Descent) and not origin.maps)
            old = self.start.get(origin.ancestor) if whole and isinstance(origin, Descent | Merged) else None
            if old is not None and old.shape == weight.shape:
                start[name] = old
            elif not whole:
                start[name] = weight
        return References(start, now)

    def save(self, folder: Path) -> None:
        """Write both into a checkpoint; what is the same is written once."""
        tensors = {f"start/{name}": tensor for name, tensor in self.start.items()}
        tensors |= {f"since/{name}": t for name, t in self.since.items() if self.start.get(name) is not t}
        seen: dict[int, str] = {}
        distinct: dict[str, Tensor] = {}
        for key, tensor in tensors.items():  # copied layers share their ancestor's start
            distinct[key] = tensor.clone() if id(tensor) in seen else tensor
            seen[id(tensor)] = key
        save_file(distinct, folder / FILE)

    @classmethod
    def load(cls, folder: Path, names: Iterable[str]) -> References | None:
        """Those of a checkpoint; None if it was saved without.

        Raises:
            CheckpointError: if the file cannot be read.
        """
        path = folder / FILE
        if not path.exists():
            return None
        tensors = read_tensors(path)
        names = list(names)
        start = {name: tensors[f"start/{name}"] for name in names if f"start/{name}" in tensors}
        since = {name: tensors.get(f"since/{name}", start.get(name)) for name in names}
        return cls(start, {name: tensor for name, tensor in since.items() if tensor is not None})


def _copy(weight: Tensor) -> Tensor:
    """A bfloat16 copy in host memory; never the weight itself, whatever its type."""
    return weight.detach().to("cpu", torch.bfloat16, copy=True).contiguous()
