"""What a model is made of: its components, their parameters, what is trained of them and what decays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from morphing_trainer.lineage import ModelSpec
from morphing_trainer.reporting.layout import aligned

_HEADER = ("component", "parameters", "trained", "decays", "")


@dataclass(frozen=True)
class Part:
    """A component of a model, or several that are alike.

    Attributes:
        name: as schedules name it, `attn.3` or `attn.0-11`.
        parameters: in scalars, adapters included; 0 of a head that is the embedding.
        trained: those of them that take a gradient.
        decayed: those that are trained under weight decay.
        adapters: what adapts its matrices.
        note: what else there is to know.
    """

    name: str
    parameters: int
    trained: int
    decayed: int
    adapters: str = ""
    note: str = ""


def parts_of(spec: ModelSpec, decays: Collection[str]) -> list[Part]:
    """The components that the model consists of, each parameter in one of them, from its input to its output.

    Args:
        decays: names of the parameters that weight decay acts on.
    """
    architecture = spec.architecture
    names = architecture.component_names(spec.config)
    owned = {name: spec.expand(name) for name in names}
    whole = [name for name in names if not any(owned[other] < owned[name] for other in names)]
    order = {name: number for number, name in enumerate(spec.shapes)}
    seen: set[str] = set()
    parts: dict[Part, int] = {}
    """Part -> the place of its first parameter in the model; a tied head has none and comes last."""
    for name in whole:
        mine, note = owned[name] - seen, ""
        if not mine:
            tied = next(other for other in whole if other != name and owned[other] & owned[name])
            note = f"is {tied}"
        seen |= mine
        trained = mine - spec.untrained
        size, live, decayed = (_size(spec, names) for names in (mine, trained, trained & {*decays}))
        place = min((order[each] for each in mine), default=len(order))
        parts[Part(name, size, live, decayed, _adapters(spec, mine), note)] = place
    return sorted(parts, key=parts.__getitem__)


def grouped(parts: Iterable[Part]) -> list[Part]:
    """The parts with neighbouring layers that are alike in one: `attn.0` to `attn.11` as `attn.0-11`."""
    kinds: dict[str, list[tuple[int, int, Part]]] = {}
    """Component kind -> (first layer, last layer, part) of each row."""
    for part in parts:
        kind, _, index = part.name.partition(".")
        layer, rows = int(index or 0), kinds.setdefault(kind, [])
        first, last, before = rows[-1] if rows else (0, -2, part)
        if last == layer - 1 and _like(before, part, layer - first):
            rows[-1] = (first, layer, _sum(before, part, f"{kind}.{first}-{layer}"))
        else:
            rows.append((layer, layer, part))
    return [part for rows in kinds.values() for _, _, part in rows]


def anatomy(spec: ModelSpec, decays: Collection[str]) -> dict[str, Any]:
    """All of it as plain JSON."""
    config = spec.config
    return {
        "architecture": spec.architecture.model_class,
        **spec.facts(),
        "heads": int(config.num_attention_heads),
        "positions": int(config.max_position_embeddings),
        "vocabulary": int(config.vocab_size),
        "tied": [list(pair) for pair in spec.tied_modules],
        "components": [asdict(part) for part in parts_of(spec, decays)],
    }


def anatomy_lines(spec: ModelSpec, decays: Collection[str], facts: Sequence[str] = ()) -> list[str]:
    """The same as plain text; `facts` are further lines for its head."""
    return [*_head(spec), *facts, "", *aligned(_HEADER, _rows(spec, decays))]


def anatomy_table(spec: ModelSpec, decays: Collection[str], facts: Sequence[str] = ()) -> RenderableType:
    """The same for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(_HEADER):
        table.add_column(title, justify="right" if number in (1, 2, 3) else "left")
    *rows, total = _rows(spec, decays)
    for row in rows:
        table.add_row(*row, style="dim" if row[2] == "-" else None)
    table.add_section()
    table.add_row(*total, style="bold")
    return Group(*(Text(line) for line in [*_head(spec), *facts]), table)


def _head(spec: ModelSpec) -> list[str]:
    config = spec.config
    return [
        f"{spec.architecture.model_class}: {spec.layers} blocks, hidden {spec.hidden}, "
        f"{config.num_attention_heads} heads, mlp {spec.mlp}, {config.max_position_embeddings} positions, "
        f"vocabulary {config.vocab_size}",
        f"{spec.parameters:,} parameters, {spec.trainable:,} of them trained ({spec.trainable / spec.parameters:.1%})",
    ]


def _rows(spec: ModelSpec, decays: Collection[str]) -> list[tuple[str, ...]]:
    parts = parts_of(spec, decays)
    total = Part("all", *(sum(getattr(p, name) for p in parts) for name in ("parameters", "trained", "decayed")))
    shown = [*grouped(parts), total]
    return [(p.name, _n(p.parameters), _n(p.trained), _n(p.decayed), p.adapters or p.note) for p in shown]


def _n(count: int) -> str:
    return f"{count:,}" if count else "-"


def _size(spec: ModelSpec, names: Iterable[str]) -> int:
    return sum(spec.shapes[name].numel() for name in names)


def _adapters(spec: ModelSpec, names: Collection[str]) -> str:
    """`c_attn rank 8, alpha 16` of the adapted modules among the owners of `names`."""
    found: dict[str, list[str]] = {}
    for module, site in spec.sites.items():
        if spec.adapter_names(module).a in names:
            found.setdefault(f"rank {site.rank}, alpha {site.alpha:g}", []).append(module.rpartition(".")[2])
    return "; ".join(f"{' and '.join(modules)}: {what}" for what, modules in found.items())


def _like(several: Part, one: Part, times: int) -> bool:
    """Whether `one` is as each of the `times` components that `several` stands for."""
    sizes = ("parameters", "trained", "decayed")
    same = all(getattr(several, name) == times * getattr(one, name) for name in sizes)
    return same and (several.adapters, several.note) == (one.adapters, one.note)


def _sum(left: Part, right: Part, name: str) -> Part:
    return replace(
        left,
        name=name,
        parameters=left.parameters + right.parameters,
        trained=left.trained + right.trained,
        decayed=left.decayed + right.decayed,
    )
