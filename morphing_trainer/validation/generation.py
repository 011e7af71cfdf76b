"""Text that a model writes: `transformers`' own `generate`, past the end of the model's positions too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one at temperature 0, else drawn.

    Attributes:
        temperature: divides the logits.
        top_k: only the k most likely tokens are drawn from; None for all.
        top_p: only the most likely tokens that together have this probability; 1 for all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def options(self) -> dict[str, Any]:
        """For a `GenerationConfig`. What is off is said, because what is left out comes from the model's own."""
        if self.temperature == 0:
            return {"do_sample": False}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k or 0,
            "top_p": self.top_p,
        }


GREEDY = Sampling()


def fitting(context: list[int], n_positions: int) -> list[int]:
    """The end of `context` that leaves room for a token to come."""
    return context[-max(1, n_positions - 1) :]


def write_on(
    model: PreTrainedModel,
    context: list[int],
    count: int,
    *,
    end: int | None,
    sampling: Sampling = GREEDY,
    streamer: BaseStreamer | None = None,
) -> list[int]:
    """The tokens with which the model continues `context`: up to `count`, or up to the first `end` (included).

    A model of n positions reads n tokens at most: of a longer context the last n - 1. When all positions are taken, the
    older half is dropped and the model writes on from the rest, so that any number of tokens can be written.

    Args:
        model: in evaluation mode. Random numbers come from the global generator of its device.
        context: at least one token.
        streamer: gets every token as it comes; its `end` is called whenever the context has slid.
    """
    limit = int(model.config.n_positions)
    config = GenerationConfig(**sampling.options(), eos_token_id=end, pad_token_id=end or 0, use_cache=True)
    window, written = fitting(context, limit), list[int]()
    generate: Any = model.generate
    while len(written) < count:
        config.max_new_tokens = min(count - len(written), max(1, limit - len(window)))
        ids = torch.tensor([window], device=model.device)
        output = generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, streamer=streamer)
        new = output[0, len(window) :].tolist()
        written += new
        if new[-1] == end:
            break
        window = (window + new)[-max(1, limit // 2) :]
    return written
