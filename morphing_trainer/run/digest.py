"""Whether all ranks hold the same: names, shapes, types and values, compared by their SHA-256.

DDP sends rank 0's weights to the others when it is made, and nobody ever sends an optimizer's memory. A difference
between ranks would therefore stay unnoticed, or be hidden. So what an operation has grown is compared before it is put
in place, and what was loaded before it is trained.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from morphing_trainer.lineage import Descent, Lineage
from morphing_trainer.run.consensus import Consensus, RankError

WEIGHT = "weight"
"""The part of a parameter that is the parameter itself; the others are the keys of its optimizer state."""


class Part(NamedTuple):
    """What is compared: a piece of something that has a name."""

    name: str
    part: str

    def __str__(self) -> str:
        return f"{self.name} ({self.part})"


class Digest(NamedTuple):
    """What a rank holds, in short.

    Attributes:
        root: of all parts; equal on two ranks if all of them are.
        parts: SHA-256 of each, in hexadecimal digits.
        shown: what each is, in words: type and shape of a tensor, otherwise its value.
    """

    root: bytes
    parts: dict[Part, str]
    shown: dict[Part, str]


def is_replicated(value: Any) -> bool:
    """Whether every rank has to hold the same values; of a sharded tensor each has its own rows."""
    return not isinstance(value, DTensor)


def parts_of(weights: Iterable[tuple[str, Tensor]], states: Mapping[str, Mapping[str, Any]]) -> dict[Part, Any]:
    """Parameters and their optimizer state, under the names that they are compared by.

    Args:
        weights: parameter names and parameters.
        states: parameter name -> optimizer state.
    """
    found: dict[Part, Any] = {Part(name, WEIGHT): weight for name, weight in weights}
    return found | {Part(name, key): value for name, state in states.items() for key, value in state.items()}


def parts_of_lineage(lineage: Lineage) -> dict[Part, Any]:
    """Where every parameter comes from, seeds of random draws included."""
    found: dict[Part, Any] = {}
    for name, origin in lineage.origins.items():
        maps = origin.maps if isinstance(origin, Descent) else ()
        found[Part(name, "origin")] = repr(replace(origin, maps=()) if isinstance(origin, Descent) else origin)
        for entry in maps:
            pieces = {"source": entry.source, "factors": entry.weight, "gradients": entry.grad}
            found |= {Part(name, f"{what} along {entry.dim}"): piece for what, piece in pieces.items()}
    return found


def facts(what: str, values: Mapping[str, Any]) -> dict[Part, Any]:
    """Plain values, each under its name and what it is, such as "setting"."""
    return {Part(name, what): value for name, value in values.items()}


def digest(named: Mapping[Part, Any], replicated: Callable[[Any], bool] = is_replicated) -> Digest:
    """The digest of tensors and plain values, in their order.

    Args:
        replicated: whether the values of an entry count; of others only name, whole shape and type do.
    """
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    with ThreadPoolExecutor(min(4, threads)) as pool:  # hashing leaves Python's lock alone
        sums = list(pool.map(_hashed, named, named.values(), map(replicated, named.values())))
    root = hashlib.sha256("".join(sums).encode()).digest()
    shown = {part: _described(value) for part, value in named.items()}
    return Digest(root, dict(zip(named, sums, strict=True)), shown)


def _hashed(part: Part, value: Any, counts: bool) -> str:
    """SHA-256 of one entry. At most one tensor a thread is copied from its device at a time."""
    found = hashlib.sha256(json.dumps([*part, _described(value)]).encode())
    if isinstance(value, Tensor) and counts:
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    frozen = ", frozen" if isinstance(value, nn.Parameter) and not value.requires_grad else ""
    return f"{value.dtype} {list(value.shape)}{frozen}"


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def compare(consensus: Consensus, mine: Digest, where: str) -> None:
    """Go on only if all ranks hold the same. Where they do, one root of 32 bytes per rank is exchanged.

    Args:
        where: what the ranks have done, for the message.

    Raises:
        RankError: on all ranks, naming the first entry that differs and the ranks that differ from rank 0.
    """
    if all(root == list(mine.root) for root in consensus.gathered(list(mine.root))):
        return
    listed = [[*part, mine.parts[part], mine.shown[part]] for part in mine.parts]
    everyone = [
        {Part(name, part): (summed, shown) for name, part, summed, shown in json.loads(text)}
        for text in consensus.texts(json.dumps(listed))
    ]
    error = RankError(f"{where}: {difference(everyone)}")
    consensus.all_know(error)
    raise error


def difference(everyone: list[dict[Part, tuple[str, str]]]) -> str:
    """The first entry that differs between ranks, in words.

    Args:
        everyone: what each rank holds: entry -> (SHA-256, description).
    """
    parts = list(dict.fromkeys(part for held in everyone for part in held))
    differing = [part for part in parts if len({held.get(part) for held in everyone}) > 1]
    if not differing:  # the same entries in another order
        return "the ranks hold the same entries in another order. Start all of them with the same model."
    first = differing[0]
    ours = everyone[0].get(first)
    others = [rank for rank, held in enumerate(everyone) if held.get(first) != ours]
    theirs = everyone[others[0]].get(first)
    ranks = f"rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}"
    if ours is None or theirs is None:
        how = f"{'only' if ours is None else 'not'} on {ranks}"
    elif ours[1] != theirs[1]:
        how = f"{_shortened(theirs[1])} on {ranks}, {_shortened(ours[1])} on rank 0"
    else:
        how = f"other values on {ranks} than on rank 0"
    return (
        f"the ranks differ in {first}: {how} ({len(differing)} of {len(parts)} entries differ). All ranks stop, and "
        "what they had is left in place. Make sure that all of them run the same code on the same data and files, and "
        "resume from the last checkpoint."
    )


def agree(
    consensus: Consensus,
    weights: Iterable[tuple[str, Tensor]],
    states: Mapping[str, Mapping[str, Any]],
    where: str,
    replicated: Callable[[Any], bool] = is_replicated,
) -> None:
    """Go on only if all ranks hold the same weights and optimizer state. All of them call it; free on one process.

    Call it with what is to be put in place, before it is: then a failure leaves everything as it was.

    Args:
        weights: `model.named_parameters()` of the bare model.
        states: parameter name -> optimizer state.
        where: what the ranks have done, for the message, such as "after stack_layers".
        replicated: see `digest`.

    Raises:
        RankError: see `compare`.
    """
    agree_on(consensus, lambda: parts_of(weights, states), where, replicated)


def agree_on(
    consensus: Consensus,
    named: Callable[[], Mapping[Part, Any]],
    where: str,
    replicated: Callable[[Any], bool] = is_replicated,
) -> None:
    """As `agree`, on anything: tensors, or plain values, which the message shows.

    Args:
        named: gives them; it may fail on a rank, and then all raise.
    """
    if consensus.world_size == 1:
        return
    found, failure = None, None
    try:
        found = digest(named(), replicated)
    except Exception as error:  # of any kind, such as no memory: the other ranks must not wait for this one in vain
        failure = error
    consensus.settle(failure)
    assert found is not None
    compare(consensus, found, where)
