"""The page: what is told of a run, put into the template. Pure: the same run gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from morphing_trainer.reporting.console import loss_text, operation_text
from morphing_trainer.reporting.growth import WORDS, kind_of
from morphing_trainer.reporting.report import figures, tables
from morphing_trainer.reporting.report.chart import Curve, Frame, extent, plot, readings
from morphing_trainer.reporting.report.curves import Chart, charts, frame_of
from morphing_trainer.reporting.report.drawing import pictures
from morphing_trainer.reporting.report.head import head, kinds
from morphing_trainer.reporting.report.network import PARTLY, Phase, parts_of, phases_of
from morphing_trainer.reporting.report.samples import samples, visible
from morphing_trainer.reporting.report.scales import decimals
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.reporting.report.text import cut, data, safe

TEMPLATES = Path(__file__).parent / "templates"
MOST_PHASES = 24
MOST_FAULTS = 20


def page(story: Story) -> str:
    """The report of a run, as HTML."""
    frame = frame_of(story)
    drawn = charts(story)
    rows = tables.operations(story)
    first, last, between = tables.ends(rows, tables.MOST_OPERATIONS)
    linked = {row.number for row in (*first, *last)}
    style, script = _file("report.css"), _file("report.js")
    values: dict[str, Any] = {
        "story": story,
        "name": cut(story.name, 120),
        "policy": policy(style, script),
        "style": Markup(style),
        "script": Markup(script),
        "state": figures.state_of(story),
        "figures": figures.figures(story),
        "advice": story.standing.advice,
        "faults": [cut(fault, 400) for fault in story.faults[:MOST_FAULTS]],
        "loading": figures.loading(story),
        "command": cut(figures.started_with(story), 4000),
        "versions": figures.versions(story),
        "charts": [_chart(frame, chart, linked if number == 0 else None) for number, chart in enumerate(drawn)],
        "linked": linked,
        "kinds": [(kind, WORDS.get(kind, "undone by its guard")) for kind in kinds(frame)],
        "stages": frame.stages if len(frame.stages) > 1 else [],
        "phases": _phases(story),
        "parts": tables.parts(story),
        "samples": samples(story),
        "columns": tables.HEADINGS,
        "operations": (first, last, between),
        "later": tables.later(story),
        "events": tables.ends(tables.events(story), tables.MOST_EVENTS),
        "schedule": tables.ends(tables.schedule(story), tables.MOST_ENTRIES),
        "arguments": tables.arguments(story),
        "readings": data({chart.name: readings(chart.curves, chart.text) for chart in drawn}),
        "end": data(frame.end),
    }
    values |= {function.__name__: function for function in (cut, visible, loss_text, operation_text, kind_of)}
    return _environment().get_template("report.html.j2").render(values)


def policy(style: str, script: str) -> str:
    """A content security policy under which nothing works but this style and this script, and nothing is loaded."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    allowed = f"style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


@cache
def _file(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=safe,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _chart(frame: Frame, chart: Chart, linked: set[int] | None) -> dict[str, Any]:
    """What the template needs of a chart. `linked`: it has the numbers of the operations above it, see `head`."""
    above, high = head(frame, linked) if linked is not None else (None, 0)
    label = _in_words(frame, chart)
    plots = []
    for log in (chart.log,) if chart.log or not chart.logs else (False, True):
        scale = extent(chart.curves, log=log, zero=chart.zero)
        ticks = scale.ticks(max(4, chart.height // 40), whole=chart.whole)
        write = _at_axis(chart, ticks)
        drawn = plot(
            frame,
            chart.curves,
            scale,
            chart.height,
            label,
            write,
            ticks=ticks,
            told=chart.text,
            head=above,
            head_height=high,
        )
        plots.append(("log" if log and not chart.log else "linear", drawn))
    return {"chart": chart, "plots": plots, "curves": [(curve, _ends(chart, curve)) for curve in chart.curves]}


def _at_axis(chart: Chart, ticks: list[float]) -> Any:
    """How values are written at the axis: losses with as many decimals as tell them apart."""
    if chart.name not in ("loss", "drift", "memory"):
        return chart.text
    places = decimals(ticks)
    return lambda value: f"{value:.{places}f}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def _ends(chart: Chart, curve: Curve) -> str:
    """The last value of a curve."""
    return chart.text(curve.points[-1][1]) if curve.points else ""


def _in_words(frame: Frame, chart: Chart) -> str:
    """A chart for those who do not see it."""
    scale = ", on a logarithmic scale" if chart.log else ""
    said = [f"{chart.title} over {frame.end:,.0f} optimizer steps{scale}"]
    for curve in chart.curves:
        known = [value for _, value in curve.points if math.isfinite(value)]
        if known:
            first, last, low, high = (chart.text(value) for value in (known[0], known[-1], min(known), max(known)))
            said.append(f"{curve.name} from {first} to {last}, lowest {low}, highest {high}")
    return "; ".join(said)


def _phases(story: Story) -> dict[str, Any]:
    """The networks of a run, each with its picture; of very many the first and the last."""
    found = phases_of(story)
    drawn = pictures([phase.network for phase in found])
    rows = [
        {"number": number, "phase": phase, "picture": picture, "facts": _facts(phase, before)}
        for number, (phase, picture, before) in enumerate(zip(found, drawn, [None, *found[:-1]], strict=True), 1)
    ]
    first, last, between = tables.ends(rows, MOST_PHASES)
    adapters = any(phase.facts.get("lora_rank") for phase in found)
    held = any(phase.facts.get("trainable") != phase.facts.get("parameters") for phase in found)
    parts = {part for phase in found if phase.network for part in parts_of(phase.network)}
    partly = any(part.state == PARTLY for part in parts)
    return {"first": first, "last": last, "between": between, "adapters": adapters, "held": held, "partly": partly}


def _facts(phase: Phase, before: Phase | None) -> list[tuple[str, str, bool]]:
    """(name, text, whether it changed with this phase)."""
    old = before.facts if before is not None else phase.facts
    return tables.facts(phase.facts, old)
