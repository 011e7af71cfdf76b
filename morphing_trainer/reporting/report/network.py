"""What a network looks like, by the description in a journal, and the phases between operations that change it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from morphing_trainer.reporting.growth import kind_of
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.story import Facts, Story
from morphing_trainer.reporting.series import Points, is_loss

MOST_LAYERS = 1000
_MATRICES = {"attn": ("c_attn", "c_proj"), "mlp": ("c_fc", "c_proj")}
TRAINED, PARTLY, HELD = "trained", "partly", "held"


@dataclass(frozen=True)
class Part:
    """A part of a network: whether its own weights are `trained`, `partly`, or `held` (frozen, or under an adapter),
    and the largest rank of the LoRA adapters on it, 0 without."""

    state: str = TRAINED
    rank: int = 0


@dataclass(frozen=True)
class Network:
    """A GPT-2. `layers`: of each its attention and its MLP, from the first; `head`: None if it is the embedding."""

    hidden: int
    mlp: int
    layers: tuple[tuple[Part, Part], ...]
    tokens: Part = Part()
    positions: Part = Part()
    head: Part | None = None


@dataclass(frozen=True)
class Phase:
    """What lies between two operations that change the network.

    Attributes:
        first, last: optimizer steps.
        causes: the operations with which it began, by their numbers (from 1).
        facts: layers, hidden, mlp, parameters, trainable, lora_rank, lora_modules, as far as they are known.
        network: None if the journal does not tell it.
        loss: (step, value) of its last evaluation.
    """

    first: float
    last: float
    causes: Sequence[tuple[int, Record]]
    facts: Facts = field(default_factory=dict)
    network: Network | None = None
    loss: tuple[float, float] | None = None


def network_of(spec: Any) -> Network | None:
    """The network of a description (`ModelSpec.to_dict`), None if it is none of a GPT-2."""
    try:
        config, frozen = spec["config"], frozenset(map(str, spec["frozen"]))
        layers, hidden = _size(config["n_layer"], MOST_LAYERS), _size(config["n_embd"])
        mlp = 4 * hidden if config.get("n_inner") is None else _size(config["n_inner"])
        ranks = _ranks(spec["adapter"])
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    blocks = tuple((_part(frozen, ranks, layer, "attn"), _part(frozen, ranks, layer, "mlp")) for layer in range(layers))
    tied = config.get("tie_word_embeddings", True) is not False
    head = None if tied else _single(frozen, ranks, "lm_head")
    tokens, positions = (_single(frozen, ranks, f"transformer.{name}") for name in ("wte", "wpe"))
    return Network(hidden, mlp, blocks, tokens, positions, head)


def parts_of(network: Network) -> set[Part]:
    """The kinds of parts that it has."""
    found = {part for layer in network.layers for part in layer}
    return found | {network.tokens, network.positions} | ({network.head} if network.head else set())


def _size(value: Any, most: int = 2**27) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{value!r:.50} is no size")
    return value


def _ranks(adapter: Any) -> dict[str, int]:
    """Module -> rank of its adapter."""
    if adapter is None:
        return {}
    pattern = adapter.get("rank_pattern") or {}
    modules = [str(module) for module in adapter["target_modules"]]
    return {module: _size(pattern.get(module, adapter["r"])) for module in modules}


def _part(frozen: frozenset[str], ranks: Mapping[str, int], layer: int, kind: str) -> Part:
    modules = [f"transformer.h.{layer}.{kind}.{name}" for name in _MATRICES[kind]]
    return together([_single(frozen, ranks, module) for module in modules])


def _single(frozen: frozenset[str], ranks: Mapping[str, int], module: str) -> Part:
    """One matrix. Under an adapter it is held, and its weight has another name."""
    rank = ranks.get(module, 0)
    return Part(HELD if rank or f"{module}.weight" in frozen else TRAINED, rank)


def together(parts: Sequence[Part]) -> Part:
    """Several parts as one."""
    states = {part.state for part in parts}
    return Part(states.pop() if len(states) == 1 else PARTLY, max(part.rank for part in parts))


def phases_of(story: Story) -> list[Phase]:
    """The phases of a run, in their order; operations that leave the network as it looks begin none.

    What a guard has undone is none of them: the run went on without it.
    """
    numbers = {change.record.index: number for number, change in enumerate(story.changes, 1) if change.undone is None}
    begin = next((event for event in story.events if event["event"] == "start"), {})
    facts = story.records[0].before if story.records else story.standing.model
    found = [Phase(0.0, story.end, (), facts, network_of(begin.get("spec")))]
    specs = {event.get("index"): event.get("spec") for event in story.events if event["event"] == "operation"}
    for record in story.records:
        before = found[-1]
        network = network_of(specs.get(record.index)) or _guessed(before.network, record)
        if (network, record.after.get("trainable")) == (before.network, before.facts.get("trainable")):
            found[-1] = replace(before, facts=record.after)
            continue
        cause = (numbers.get(record.index, record.index + 1), record)
        if before.first == record.step and (before.causes or record.step == 0):
            found[-1] = replace(before, facts=record.after, network=network, causes=(*before.causes, cause))
        else:
            found[-1] = replace(before, last=float(record.step))
            found.append(Phase(float(record.step), story.end, (cause,), record.after, network))
    key = loss_key(story)
    points = [] if key is None else story.points(key)
    return [replace(phase, loss=_loss(points, phase, phase is found[-1])) for phase in found]


def _guessed(before: Network | None, record: Record) -> Network | None:
    """What a network without a description looked like: as before, if the operation changes only numbers."""
    return before if kind_of(record) == "settings" else None


def _loss(points: Points, phase: Phase, last: bool) -> tuple[float, float] | None:
    """The last evaluation of a phase: of those at its last step the first, as the next operation may have been
    evaluated, too."""
    begin, end = bisect_right(points, phase.first, key=_step), bisect_right(points, phase.last, key=_step)
    if begin == end:
        return None
    first = bisect_left(points, points[end - 1][0], key=_step)
    return points[end - 1 if last else max(begin, first)]


def _step(point: tuple[float, float]) -> float:
    return point[0]


def loss_key(story: Story) -> str | None:
    """Key of the evaluation loss that counts: of several sets the first one's."""
    found = [key for key in story.keys("eval_") if is_loss(key)]
    return "eval_loss" if "eval_loss" in found else found[0] if found else None
