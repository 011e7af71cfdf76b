"""Whether a model on disk still computes what another one does: both are loaded, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from morphing_trainer.errors import ModelError
from morphing_trainer.models import load_model

SAMPLES, MOST_TOKENS = 2, 64
_SEED = 20_240_607

_SLACK = 10
_LEAST = {torch.float64: 1e-10}
_LEAST_ELSE = 1e-4


class Checked(NamedTuple):
    """What two models make of the same random tokens.

    Attributes:
        difference: root mean square of the differences of their logits, over that of the logits about their mean.
        tolerance: what rounding can come to.
        before, after: cross-entropy on these tokens; as they are random, only the difference says something.
    """

    difference: float
    tolerance: float
    before: float
    after: float

    @property
    def same(self) -> bool:
        return self.difference <= self.tolerance


def tolerance(dtype: torch.dtype) -> float:
    """How far an exact operation may move the logits of a model whose weights are of this type.

    A weight that is divided or merged is rounded once more, by half the distance of neighbouring numbers (`eps`); the
    layers add these errors up as random ones. Ten times `eps` is far above what this comes to and far below what a
    wrong factor does. Sums in float32 differ by their order besides, which is below 1e-4.
    """
    return max(_SLACK * torch.finfo(dtype).eps, _LEAST.get(dtype, _LEAST_ELSE))


def logits_of(folder: Path, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Logits (samples, tokens, vocabulary) of the model in `folder` on random tokens, and their cross-entropy.

    Args:
        dtype: of its weights. It computes in float32 at least.

    Raises:
        ModelError: if it cannot be loaded, or the logits are not finite.
    """
    model = load_model(str(folder), dtype=torch.promote_types(dtype, torch.float32))
    length = min(MOST_TOKENS, model.config.n_positions)
    generator = torch.Generator().manual_seed(_SEED)
    tokens = torch.randint(model.config.vocab_size, (SAMPLES, length), generator=generator)
    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits.double()
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{folder}: the model answers random tokens with NaN or infinity; it is dead, or damaged")
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    return logits, float(loss)


def compared(old: Path, new: Path, dtype: torch.dtype) -> Checked:
    """Load the models in two folders one after the other and compare them.

    Raises:
        ModelError: as `logits_of`.
    """
    before, loss_before = logits_of(old, dtype)
    after, loss_after = logits_of(new, dtype)
    spread = before - before.mean(-1, keepdim=True)
    scale = float(spread.square().mean().sqrt()) or 1.0
    difference = float((after - before).square().mean().sqrt()) / scale
    return Checked(difference, tolerance(dtype), loss_before, loss_after)
