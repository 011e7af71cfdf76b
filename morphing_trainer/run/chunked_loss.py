"""The loss of a causal language model without its logits: they are made, and used up, for some tokens at a time.

Of GPT-2's vocabulary, the logits of 8 x 1,024 tokens take 1.6 GB in float32, and as much again several times on the way
to their gradient. Here each chunk is a checkpoint (`torch.utils.checkpoint`): the backward pass makes its logits anew,
which is one more product of hidden states and head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, Trainer

from morphing_trainer.errors import ConfigError
from morphing_trainer.validation.example import undisturbed

IGNORED = -100
_OPTION = "loss_chunk_size"


class ChunkedLoss:
    """The loss function of one model: chunked where the model was asked for no logits, as ever where it made them.

    It takes the last hidden states from the model's body by a hook, and is the model's `loss_function`.

    Args:
        model: a causal language model whose logits are its last hidden states through the head, and nothing else.
        size: tokens whose logits are in memory at once.
    """

    def __init__(self, model: PreTrainedModel, size: int) -> None:
        ordinary = model.loss_function
        if isinstance(ordinary, ChunkedLoss):  # of an earlier run with this model
            ordinary.hook.remove()
            ordinary = ordinary.ordinary
        self.ordinary: Callable[..., Tensor] = ordinary
        self.head, self.size = model.get_output_embeddings(), size
        self._hidden: Tensor | None = None
        self._asked = False
        self.hook: RemovableHandle = model.base_model.register_forward_hook(self._keep)
        model.loss_function = self

    def _keep(self, body: nn.Module, given: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state if self._asked else None

    def ask(self) -> dict[str, Tensor]:
        """What the model is given in its next call, so that it makes no logits, and the loss comes in chunks."""
        self._asked = True
        return {"logits_to_keep": torch.empty(0, dtype=torch.int64, device=self.head.weight.device)}

    def __call__(self, logits: Tensor, labels: Tensor, vocab_size: int, **kwargs: Any) -> Tensor:
        """The loss: mean over the labels, or their sum over `num_items_in_batch`.

        Args:
            logits: (batch, tokens, vocabulary), or (batch, 0, vocabulary) where the loss is to be chunked.
            labels: (batch, tokens), of which the next one is to be told; -100 is ignored.
        """
        hidden, self._hidden, self._asked = self._hidden, None, False
        if logits.shape[1] or hidden is None:
            return self.ordinary(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        states, targets = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        draws = type(self.head) is not nn.Linear  # an adapter may have dropout
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for chunk, wanted in zip(states.split(self.size), targets.split(self.size), strict=True):
            total = total + checkpoint(self._summed, chunk, wanted, use_reentrant=False, preserve_rng_state=draws)
        items = kwargs.get("num_items_in_batch")
        return total / ((targets != IGNORED).sum() if items is None else torch.as_tensor(items, device=total.device))

    def _summed(self, states: Tensor, targets: Tensor) -> Tensor:
        """The loss of a chunk, summed. Args: states (tokens, hidden), targets (tokens)."""
        return functional.cross_entropy(self.head(states).float(), targets, ignore_index=IGNORED, reduction="sum")


def check_chunks(trainer: Trainer, model: PreTrainedModel) -> None:
    """Refuse `loss_chunk_size` where the loss is more than cross-entropy of a matrix times hidden states.

    Raises:
        ConfigError: saying what is in the way.
    """
    if getattr(trainer.args, _OPTION) is None:
        return
    name = type(model).__name__
    if trainer.is_fsdp_enabled:  # which gives the head's memory back before its logits are made anew
        raise ConfigError(f"{_OPTION}: not supported under FSDP2; leave it out, or use DDP.")
    if trainer.compute_loss_func is not None:
        raise ConfigError(f"{_OPTION}: compute_loss_func needs all logits; leave one of the two out.")
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ConfigError(f"{_OPTION}: the forward pass of {name} takes no logits_to_keep; leave the option out.")
    if not _is_head_alone(model):
        raise ConfigError(f"{_OPTION}: {name} does more to its hidden states than its head; leave the option out.")


def _is_head_alone(model: PreTrainedModel) -> bool:
    """Whether its logits are its last hidden states through the head while it trains, seen by two tokens.

    The head is made to give large numbers: a cap of 30, say, hardly shows at the logits of a fresh model. The model,
    its buffers and the random states are as before when it has been looked at.
    """
    seen: list[Tensor] = []

    def keep(body: nn.Module, given: Any, output: Any) -> None:
        seen.append(output.last_hidden_state)

    def enlarge(head: nn.Module, given: tuple[Tensor], output: Tensor) -> Tensor:
        large = torch.linspace(-1e4, 1e4, output.numel(), device=output.device).to(output.dtype).view_as(output)
        seen.extend((*given, large))
        return large

    body, head = model.base_model, model.get_output_embeddings()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tokens = {"input_ids": torch.arange(2, device=model.device)[None], "use_cache": False}
    with undisturbed(model), body.register_forward_hook(keep), head.register_forward_hook(enlarge):
        model.train()
        logits = functional_call(model, buffers, (), tokens).logits
    if len(seen) != 3:  # the head's weight is used, but not the head
        return False
    states, taken, large = seen
    return torch.equal(taken, states) and torch.equal(logits.float(), large.float())
