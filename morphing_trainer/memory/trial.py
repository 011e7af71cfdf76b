"""Trial steps on the live model: forward and backward with a batch of any size, and nothing is different afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from morphing_trainer.memory.failures import is_out_of_memory
from morphing_trainer.memory.peak import peak_percent
from morphing_trainer.memory.rng import RandomState
from morphing_trainer.run.consensus import Consensus

MOST_READ = 1024
"""Samples whose length is looked at, evenly spaced over the data."""


def longest_samples(dataset: Any) -> list[Any]:
    """The longest of up to `MOST_READ` samples: a step needs most memory with them."""
    found: list[Any] = []
    longest = -1
    for index in range(0, len(dataset), max(1, math.ceil(len(dataset) / MOST_READ))):
        sample = dataset[index]
        length = len(sample["input_ids"] if "input_ids" in sample else next(iter(sample.values())))
        if length > longest:
            found, longest = [], length
        if length == longest:
            found.append(sample)
    return found


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave gradients, buffers, modes and all random number generators as they were."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    random = RandomState.now(device)
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in modes:
            module.training = training
        random.restore(device)


class StepProbe:
    """Measures steps of the live model; see `finding.Probe`.

    Args:
        model: without what wraps it: the ranks try on their own, and one of them may run out of memory.
        step: forward and backward of one micro-batch on it, which is not on the device yet.
        samples: the most that one device could be given.
        longest: what to make batches of.
        collate: makes them.
        processes, ahead: see `peak_percent`.
        measure: as `peak_percent`.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[nn.Module, Any], object],
        samples: int,
        longest: Sequence[Any],
        collate: Callable[[Any], Any],
        device: torch.device,
        consensus: Consensus,
        processes: int = 1,
        ahead: int = 0,
        measure: Callable[..., float] = peak_percent,
    ) -> None:
        self.samples = samples
        self._model, self._step, self._device = model, step, device
        self._longest, self._collate, self._consensus = longest, collate, consensus
        self._processes, self._ahead, self._measure = processes, ahead, measure

    def __call__(self, batch: int) -> float | None:
        """Memory in use at the peak of a step with this batch, in percent; None if it ran out on any rank."""
        percent, failure = math.inf, None
        try:
            with undisturbed(self._model, self._device):
                work = lambda: self._work(batch)  # noqa: E731  # a def here would keep the batch alive in its cell
                percent = self._measure(work, self._device, self._processes, self._ahead)
        except Exception as error:  # of any kind: the other ranks must not wait for this one in vain
            failure = None if is_out_of_memory(error) else error.with_traceback(None)
        clear_device_cache(garbage_collection=True)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)  # a trial's peak is none of the run's
        self._consensus.settle(failure)
        (worst,) = self._consensus.largest([percent])
        return None if math.isinf(worst) else worst

    def _work(self, batch: int) -> None:
        # Twice: a step that accumulates holds the gradients already while it goes forward.
        for _ in range(2):
            self._step(self._model, self._collate(list(islice(cycle(self._longest), batch))))
