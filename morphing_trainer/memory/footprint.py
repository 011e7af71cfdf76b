"""How much memory a training step will need, before there is a model: a step on tensors without content.

A model of the description runs forward and backward and its optimizer steps under torch's `FakeTensorMode`, which
allocates nothing, while the bytes of every tensor that is alive are added up. That is what torch's allocators hand out
at the peak. The process has more: libraries (or the CUDA context) and what the allocator keeps for later.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from morphing_trainer.lineage import ModelSpec


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a training step.

    Attributes:
        weights, gradients, optimizer: of the model, of what is trained of it, and the optimizer's state.
        activations: what else is alive at the peak: activations that are kept for the way back, and temporaries.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Step:
    """What of a training step matters for its memory.

    Attributes:
        samples, length: of a micro-batch.
        accumulates: it is not the first of its step, so that gradients are there already.
        autocast: type of the products under mixed precision, None without.
        checkpointing: activations inside of a block are computed again on the way back.
    """

    samples: int
    length: int
    accumulates: bool = False
    autocast: torch.dtype | None = None
    checkpointing: bool = False


def step_footprint(
    spec: ModelSpec, step: Step, make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], device: str = "cpu"
) -> Footprint:
    """The memory of a training step of a model of this description.

    Args:
        make_optimizer: from the parameters that are trained.
        device: whose kernels are meant; what they keep for the way back differs.
    """
    config = copy.deepcopy(spec.config)
    config.use_cache = False  # as `Trainer` sets it
    model = replace(spec, config=config).build("meta")
    model.loss_type = "ForCausalLM"
    model.train()
    if step.checkpointing:
        model.activation_checkpointing_enable()
    with FakeTensorMode(), _Alive() as alive:
        _put(model, device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = alive.now
        optimizer = make_optimizer(trained)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        gradients = alive.now - weights
        optimizer.step()
        state = alive.now - weights - gradients
        if not step.accumulates:
            optimizer.zero_grad()
        alive.peak = alive.now
        tokens = torch.zeros(step.samples, step.length, dtype=torch.long, device=device)
        with torch.autocast(torch.device(device).type, step.autocast, enabled=step.autocast is not None):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        del loss
        optimizer.step()
    return Footprint(weights, gradients, state, alive.peak - weights - gradients - state)


def _put(model: nn.Module, device: str) -> None:
    """Give a model on the meta device parameters and buffers that have a device, and no content either."""
    made: dict[int, Tensor] = {}
    """By identity: what modules share stays shared."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new: Tensor = torch.empty(old.shape, dtype=old.dtype, device=device)
                    made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                tensors[name] = made[id(old)]  # type: ignore[assignment]


class _Alive(TorchDispatchMode):
    """Adds up the bytes of all storages that operations have made and that are still alive.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, size)

    def _gone(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size
