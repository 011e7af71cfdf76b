"""Operations on a model on disk: what they make of it, and the folder that holds the result."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from morphing_trainer.checkpoint import adapters
from morphing_trainer.checkpoint.trainer_files import OPTIMIZER
from morphing_trainer.engine import noting_loss
from morphing_trainer.errors import ModelError, OperationError
from morphing_trainer.lineage import Census, ModelSpec
from morphing_trainer.lineage.lineage import Descent, Lineage, Newborn
from morphing_trainer.offline.checking import Checked, compared
from morphing_trainer.offline.descendants import Descendants, Tensors
from morphing_trainer.offline.moments import Memory, moved, read_memory, write_memory
from morphing_trainer.offline.place import appearing, check_place, check_room
from morphing_trainer.offline.source import Source
from morphing_trainer.offline.tensor_files import bytes_of, write_tensors
from morphing_trainer.operations import ArchitectureOperation, Morph, Operation
from morphing_trainer.operations.lora import MergeLoraWeights
from morphing_trainer.planning import operation_rng
from morphing_trainer.run.bundle import WEIGHTS

_MORE = 1 << 20
"""Bytes of the small files."""


class Step(NamedTuple):
    """One operation and what it makes of the model before it. `tensors` says how many of them fare how."""

    operation: ArchitectureOperation
    before: ModelSpec
    morph: Morph
    tensors: Mapping[str, int]
    census: Census | None = None


@dataclass(frozen=True)
class Applied:
    """What was done.

    Attributes:
        source, out: the folders.
        steps: the operations.
        size: bytes of weights in `out`.
        check: how the models compare, if they were.
        types: names of the types of its weights.
    """

    source: Path
    out: Path
    steps: Sequence[Step]
    size: int
    check: Checked | None
    types: Sequence[str] = field(default_factory=tuple)

    @property
    def preserving(self) -> bool:
        return all(step.morph.preserving for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "source": str(self.source),
            "out": str(self.out),
            "bytes": self.size,
            "types": list(self.types),
            "preserving": self.preserving,
            "operations": [
                {
                    **step.operation.to_dict(),
                    "preserving": step.morph.preserving,
                    "note": step.morph.note,
                    "warning": step.morph.warning,
                    "before": step.before.facts(),
                    "after": step.morph.spec.facts(),
                    "tensors": dict(step.tensors),
                    "moments": None if step.census is None else asdict(step.census),
                }
                for step in self.steps
            ],
            "check": None if self.check is None else self.check._asdict(),
        }


def planned(operations: Sequence[Operation], spec: ModelSpec, seed: int) -> list[Step]:
    """Every operation on the description that the one before has left. No weights are looked at.

    Args:
        seed: of random choices. Those of operation i are the ones that it would make as number i of a run's schedule.

    Raises:
        OperationError: if one changes no model, or does not fit.
    """
    steps = []
    for index, operation in enumerate(operations):
        if not isinstance(operation, ArchitectureOperation):
            raise OperationError(
                f"{operation.name}: changes how a model is trained, and a model's folder says nothing of that; put it "
                "into the schedule of a run"
            )
        try:
            morph = operation.morph(spec, operation_rng(seed, index))
        except OperationError as error:
            raise OperationError(f"operation {index + 1} ({operation.name}): {error}") from error
        steps.append(Step(operation, spec, morph, fates(morph.lineage)))
        spec = morph.spec
    return steps


def fates(lineage: Lineage) -> dict[str, int]:
    """How many tensors are kept as they are, copies of others, changed, and new."""
    found = Counter({"kept": 0, "copied": 0, "changed": 0, "new": 0})
    seen: set[str] = set()
    for origin in lineage.origins.values():
        if isinstance(origin, Newborn):
            found["new"] += 1
        elif not isinstance(origin, Descent) or origin.maps:
            found["changed"] += 1
        else:
            found["copied" if origin.ancestor in seen else "kept"] += 1
            seen.add(origin.ancestor)
    return dict(found)


def apply(
    source: Source,
    operations: Sequence[Operation],
    out: Path,
    *,
    seed: int = 0,
    merge: bool = False,
    optimizer: bool = False,
    check: bool = True,
    overwrite: bool = False,
) -> Applied:
    """Write the model that operations make of one on disk. Memory holds what one tensor needs at a time.

    Args:
        out: the folder to write, which is there in the end as a whole or not at all.
        merge: adapters that there are in the end.
        optimizer: its state too, for a checkpoint of a run.
        check: load both models, and refuse a result that has another function than it should.
        overwrite: replace a model that is there.

    Raises:
        OperationError, ConfigError, StorageError: for what can be seen beforehand, and then before anything is written.
        ModelError: if a preserving operation has not preserved the function.
    """
    check_place(out, source.folder, overwrite=overwrite)
    steps = planned(operations, source.spec, seed)
    if merge and steps[-1].morph.spec.sites:
        steps = planned([*operations, MergeLoraWeights(restart=False)], source.spec, seed)
    tensors, spec = source.tensors, source.spec
    memory = None
    if optimizer:
        assert source.bundle is not None, "only checkpoints have an optimizer"
        memory = read_memory(source.bundle, source.spec)
    for number, step in enumerate(steps):
        step = step._replace(morph=noting_loss(step.morph, tensors))
        if memory is not None:
            memory, census = moved(memory, step.morph)
            step = step._replace(census=census)
        steps[number] = step
        spec = step.morph.spec
        tensors = Descendants(step.morph.lineage, spec, tensors)
    size = bytes_of(tensors.shapes)
    check_room(out, size + _MORE + sum(path.stat().st_size for path in source.extras) + _bytes(memory))
    types = {dtype for dtype, _ in tensors.shapes.values()}
    with appearing(out, overwrite=overwrite) as folder:
        for path in source.extras:
            shutil.copyfile(path, folder / path.name)
        write_model(folder, spec, tensors, home=out)
        if memory is not None:
            write_memory(folder / OPTIMIZER, memory, spec)
        found = None
        if check:
            found = compared(source.folder, folder, _coarsest(source.tensors))
            if all(step.morph.preserving for step in steps) and not found.same:
                raise ModelError(
                    f"{source.folder}: the function should have stayed, and on random tokens the logits have moved by "
                    f"{found.difference:.2g} of their spread, where rounding comes to {found.tolerance:.2g} at most; "
                    "nothing was written. --no_check writes it all the same."
                )
    names = sorted(str(dtype).removeprefix("torch.") for dtype in types)
    return Applied(source.folder, out, steps, size, found, names)


def write_model(folder: Path, spec: ModelSpec, tensors: Tensors, home: Path) -> None:
    """Write a model as `save_model(merge=False)` does: a plain one, and its adapters beside it.

    Args:
        home: where the folder will stand.

    Raises:
        OSError: if the disk refuses.
    """
    base = {spec.name_before(name): name for name in spec.shapes if not spec.adapter_at(name)}
    write_tensors(
        folder / WEIGHTS, {key: tensors.shapes[name] for key, name in base.items()}, lambda key: tensors[base[key]]
    )
    config = spec.evolve().config
    config.architectures = [spec.architecture.model_class]
    kinds = {tensors.shapes[name][0] for name in base.values()}
    if len(kinds) == 1:
        config.dtype = kinds.pop()
    config.save_pretrained(folder)
    if not spec.sites:
        return
    saved, copies = adapters.saved_names(spec)
    own = {key: name for name, key in saved.items()}
    shapes = {key: tensors.shapes[name] for key, name in own.items()}
    shapes |= {copy: (shapes[owner][0], [*reversed(shapes[owner][1])]) for copy, owner in copies.items()}

    def matrix(key: str) -> torch.Tensor:
        return tensors[own[copies[key]]].T if key in copies else tensors[own[key]]

    write_tensors(folder / adapters.WEIGHTS, shapes, matrix)
    adapters.write_config(folder, spec, home)


def _coarsest(tensors: Tensors) -> torch.dtype:
    return max((dtype for dtype, _ in tensors.shapes.values()), key=lambda dtype: torch.finfo(dtype).eps)


def _bytes(memory: Memory | None) -> int:
    values = [value for state in (memory.states.values() if memory else ()) for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
