"""Tokens per second and memory of a step, of the bare loop and of both trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedModel

from benchmarks.device.budget import Figures
from benchmarks.device.memory import clean, total_memory
from benchmarks.flops import training_flops
from benchmarks.throughput import CONTESTANTS, Size, run, samples
from morphing_trainer.data.samples import Blocks
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.memory.failures import brief, is_out_of_memory
from morphing_trainer.models import new_model

CONTEST = CONTESTANTS[:3]
SHARE = 0.6
"""Of the device's memory, that a step is to fill roughly."""
LARGEST = 32
BYTES_PER_PARAMETER = 16
"""Weight, gradient and Adam's two moments, in float32."""
BYTES_PER_UNIT = 56
"""What eager bf16 training keeps for the backward pass, for each token, layer and unit of the residual stream."""
BYTES_PER_LOGIT = 16
"""Logits in bf16 and float32, and the gradients of both."""


def fitting(size: Size, memory: int) -> int:
    """A batch, a power of two, whose step takes up to `SHARE` of so many bytes by a rough estimate."""
    units = size.layers * size.hidden
    parameters = size.vocabulary * size.hidden + 12 * units * size.hidden
    each = size.length * (BYTES_PER_UNIT * units + BYTES_PER_LOGIT * size.vocabulary)
    batch = 1
    while 2 * batch <= LARGEST and 2 * batch * each + BYTES_PER_PARAMETER * parameters <= SHARE * memory:
        batch *= 2
    return batch


@dataclass
class Speeds:
    """Rounds of the contest on one model, eager or compiled.

    Attributes:
        model: name.
        size: the batch is halved for all when it does not fit, and stays so.
        steps, warm_up: of each run.
    """

    model: str
    size: Size
    compiled: bool
    steps: int
    warm_up: int
    tell: Callable[[str], None]

    @property
    def mode(self) -> str:
        return "compiled" if self.compiled else "eager"

    @cached_property
    def flops(self) -> float:
        """FLOPs of one token, forward and backward."""
        return training_flops(ModelSpec(self.size.config()).to_dict(), self.size.length) / self.size.length

    def round(self, turn: int) -> Iterator[Figures]:
        """Everybody once, in the other order every other time. Figures of a batch given up on are not to be used."""
        model = new_model(self.size.config(), seed=0)
        while True:
            batch = self.size.batch
            data = samples(self.size, batch * self.steps)
            try:
                for kind in CONTEST if turn % 2 == 0 else CONTEST[::-1]:
                    yield self._one(kind, model, data) | {"round": turn}
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or batch == 1:
                    raise
            self.size = replace(self.size, batch=batch // 2)
            self.tell(f"out of memory with a batch of {batch}: all again with {batch // 2}")

    def _one(self, kind: str, model: PreTrainedModel, data: Blocks) -> Figures:
        """One run of one contestant.

        Raises:
            MemoryError, RuntimeError: if memory runs out.
        """
        figures: Figures = {
            "table": "speed",
            "model": self.model,
            "mode": self.mode,
            "kind": kind,
            "batch": self.size.batch,
            "length": self.size.length,
            "steps": self.steps,
            "flops_per_token": self.flops,
        }
        clean()
        try:
            ran = run(
                kind,
                model,
                data,
                self.steps,
                batch=self.size.batch,
                warm_up=self.warm_up,
                bf16=True,
                compiled=self.compiled,
            )
        except Exception as error:  # of any kind: the others have nothing to do with it
            if is_out_of_memory(error):
                raise
            self.tell(f"{kind}: {brief(error)}")
            return {**figures, "failed": brief(error)}
        finally:
            clean()
        self.tell(f"{kind}: {ran.speed:,.0f} tokens/s")
        return {**figures, "tokens_per_s": ran.speed, "peak_bytes": ran.peak, "losses": ran.losses}


def sized(size: Size) -> Size:
    """With the batch that fits the device; unchanged on a CPU."""
    memory = total_memory()
    return size if memory is None else replace(size, batch=fitting(size, memory))
