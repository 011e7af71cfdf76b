"""Another batch at the same number of samples per optimizer step."""

from __future__ import annotations

from dataclasses import replace

from morphing_trainer.run.batches import settled
from morphing_trainer.settings import Settings


def with_batch(settings: Settings, batch: int, processes: int = 1) -> Settings:
    """The settings with another per-device batch, and the accumulation that keeps the samples of an optimizer step.

    Where they are no multiple of the new batch, the last micro-batch of a step is smaller. A batch larger than a step
    becomes the step.
    """
    samples = settings.step_samples or settings.batch_size * settings.grad_accum * processes
    batch = min(batch, -(-samples // processes))
    return settled(replace(settings, batch_size=batch, step_samples=samples), processes)


def halved(settings: Settings, processes: int = 1) -> Settings:
    """Half the per-device batch, rounded down but at least 1; the accumulation doubles, or does what is nearest."""
    return with_batch(settings, max(1, settings.batch_size // 2), processes)
