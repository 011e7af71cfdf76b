"""The batch that fits into memory, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, WithJsonSchema

from morphing_trainer.errors import suggest
from morphing_trainer.memory.finding import MULTIPLE, Probe, largest_batch
from morphing_trainer.memory.splitting import with_batch
from morphing_trainer.operations.base import MeasuredOperation, whole
from morphing_trainer.settings import Settings

DEFAULTS: dict[str, float] = {"target_vram_percent": 82, "max_batch_size": 1024}


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    for key, number in value.items():
        if key not in DEFAULTS:
            raise ValueError(f"unknown key {key!r}{suggest(str(key), DEFAULTS)}")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{key} must be a number, is {number!r}")
    target, most = (value.get(key, default) for key, default in DEFAULTS.items())
    if not 0 < target <= 100:
        raise ValueError(f"target_vram_percent must be above 0 and at most 100, is {target}")
    if not isinstance(whole(most), int) or most < MULTIPLE:
        raise ValueError(f"max_batch_size must be a whole number from {MULTIPLE}, is {most}")
    return {key: whole(number) for key, number in value.items()}


_SCHEMA = {
    "type": "object",
    "properties": {
        "target_vram_percent": {"type": "number", "exclusiveMinimum": 0, "maximum": 100, "default": 82},
        "max_batch_size": {"type": "integer", "minimum": MULTIPLE, "default": 1024},
    },
    "additionalProperties": False,
}
BatchTarget = Annotated[dict[str, Any], AfterValidator(_checked), WithJsonSchema(_SCHEMA)] | None
"""Nothing, or `target_vram_percent` and `max_batch_size`, or one of them."""


class AdjustBatchSize(MeasuredOperation):
    """Measure memory, and set the per-device training batch to the largest that fits.

    Steps of the live model (forward and backward, nothing is updated) are tried on the longest samples of the data with
    8, 16, 32, ... samples, until one takes more than `target_vram_percent` of the device's memory or runs out of it.
    The largest that fits is a multiple of 8, at most `max_batch_size` and what there are samples; a power of two is
    taken where it is at most a fifth smaller. All ranks get the smallest of what fits on each. On a CPU the memory of
    the process counts against the machine's, or the container's. Weights, optimizer, random numbers and the place in
    the data stay as they are. `keep_effective` adapts the accumulation, so that an optimizer step has as many samples
    as before; the batch then grows to that many at most.

    A resumed run takes over what was measured. The dry run cannot know it and goes on with the batch as it was.

    Source: the trial steps of accelerate's `find_executable_batch_size`, with a target below the edge.
    """

    family: ClassVar[str] = "Batch"
    name: Literal["adjust_batch_size"] = "adjust_batch_size"
    value: BatchTarget = None
    keep_effective: bool = False

    @property
    def _target(self) -> float:
        return float({**DEFAULTS, **(self.value or {})}["target_vram_percent"])

    def measure(self, probe: Probe) -> dict[str, float]:
        found = largest_batch(probe, self._target, int({**DEFAULTS, **(self.value or {})}["max_batch_size"]))
        return {"batch_size": found.batch, "memory_percent": round(found.percent, 1)}

    def updated(self, settings: Settings, measured: Mapping[str, float], processes: int) -> Settings:
        batch = int(measured["batch_size"])
        if self.keep_effective:
            return with_batch(settings, batch, processes)
        return replace(settings, batch_size=batch, step_samples=None)

    def note(self, measured: Mapping[str, float]) -> str:
        return (
            f"measured: a batch of {measured['batch_size']:g} takes {measured['memory_percent']:g} % of memory "
            f"(target {self._target:g} %)"
        )
