"""Charts: places of curves, marks and stages, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from xml.etree.ElementTree import Element

from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.chart import Curve, Frame, extent, path, plot, readings
from morphing_trainer.reporting.report.curves import charts, frame_of
from morphing_trainer.reporting.report.head import head
from morphing_trainer.reporting.report.scales import Scale
from tests.reporting.report.support import all_of, made, read, section, story, with_operations, words

TEN = Frame(10.0)


def drawn(frame: Frame, *curves: Curve, scale: Scale | None = None) -> Element:
    picture = plot(
        frame, curves, scale or Scale(0.0, 4.0), 100, "what it is", "{:g}".format, ticks=[0.0, 2.0], told="{:g}!".format
    )
    return read(f"<!DOCTYPE html><html><head><title>t</title></head><body>{picture}</body></html>")


def test_lines() -> None:
    unit = Scale(0.0, 1.0)
    assert path(TEN, [(0, 0), (5, 1), (10, 0.5)], unit, 100) == "M0 100L500 0L1000 50"
    assert path(TEN, [(0, 0), (5, 1), (10, 1)], unit, 100, step=True) == "M0 100L500 100L500 0L1000 0"
    gap = [(0.0, 0.0), (1.0, 0.5), (2.0, math.nan), (3.0, 0.5), (4.0, math.inf), (5.0, 0.0)]
    assert path(TEN, gap, unit, 100) == "M0 100L100 50M300 50M500 100"
    assert path(TEN, [(0, 1), (1, 0), (2, 10)], Scale(1.0, 10.0, log=True), 100) == "M0 100M200 0", "none for 0"
    assert path(TEN, [], unit, 100) == ""


def test_marks_are_at_their_values_and_say_them() -> None:
    tree = drawn(TEN, Curve("evaluation loss", [(5.0, 2.0), (10.0, math.nan)], "two", dots=True))
    (dot,) = all_of(tree, "circle")
    assert (dot.get("cx"), dot.get("cy"), words(dot)) == ("50%", "54", "step 5: evaluation loss 2!")
    (broken,) = all_of(tree, "text", class_="broken")
    assert broken.get("x") == "100%" and words(broken) == "step 10: evaluation loss is NaN or infinite\u00d7"
    lone = drawn(TEN, Curve("loss", [(5.0, 2.0)], "one"))
    assert len(all_of(lone, "circle")) == 1, "a lone point would not be seen"
    many = drawn(TEN, Curve("loss", [(x / 10, 2.0) for x in range(100)], "one", dots=True))
    assert not all_of(many, "circle")


def test_axes() -> None:
    tree = drawn(Frame(600.0))
    axis, curves = (all_of(tree, "svg", class_=name)[0] for name in ("axis", "curves"))
    assert [(words(text), text.get("y")) for text in all_of(axis, "text")] == [("0", "108"), ("2", "58")]
    ticks = all_of(curves, "text", class_="tick")
    assert [words(tick) for tick in ticks] == ["0", "100", "200", "300", "400", "500", "600"]
    assert [tick.get("text-anchor") for tick in ticks] == ["start", *["middle"] * 5, "end"], "none is cut off"
    (name,) = all_of(curves, "text", class_="axis-name")
    assert (words(name), name.get("x"), name.get("text-anchor")) == ("optimizer step", "50%", "middle")
    assert float(name.get("y", 0)) - float(ticks[0].get("y", 0)) >= 14, "below the numbers"
    assert float(name.get("y", 0)) < float(curves.get("height", 0))
    assert curves.get("aria-label") == "what it is" == words(all_of(curves, "title")[0])
    (stretched,) = all_of(curves, "svg")[1:]
    assert (stretched.get("viewBox"), stretched.get("preserveAspectRatio")) == ("0 0 1000 100", "none")


def test_operations_and_stages_are_marked() -> None:
    marks = [(2.0, "architecture", "1. stack"), (2.0, "architecture", "2. widen"), (5.0, "settings", "3. lr")]
    frame = Frame(10.0, marks, [("books", 0.0, 4.0), ("talk", 4.0, 10.0)])
    tree = drawn(frame)
    lines = [line for line in all_of(tree, "line") if "operation" in line.get("class", "")]
    assert [(line.get("x1"), line.get("class")) for line in lines] == [
        ("20%", "operation architecture"),
        ("50%", "operation settings"),
    ]
    bands = all_of(tree, "rect", class_="stage")
    assert [(band.get("x"), band.get("width")) for band in bands] == [("0%", "40%"), ("40%", "60%")]
    markup, height = head(frame, {1, 3})
    page = read(f"<!DOCTYPE html><html><head><title>t</title></head><body><svg>{markup}</svg></body></html>")
    wide = next(group for group in all_of(page, "g") if group.get("class") == "wide")
    chips = all_of(wide, "a")
    assert [chip.get("href") for chip in chips] == ["#op-1", "#operations", "#op-3"], "2 has no row to go to"
    assert [words(all_of(chip, "text")[0]) for chip in chips] == ["1", "2", "3"]
    assert "1. stack" in words(chips[0]) and height == 18 + 2 * 20


def test_many_operations_are_drawn_as_few_lines() -> None:
    frame = Frame(1e4, [(float(step), "settings", "x") for step in range(10_000)])
    tree = drawn(frame)
    assert len([line for line in all_of(tree, "line") if "operation" in line.get("class", "")]) <= 101
    markup, _ = head(frame, set())
    assert len(markup) < 60_000


def test_a_wide_scale_is_not_that_of_a_lone_peak() -> None:
    raw = [(float(x), 2.0) for x in range(1000)]
    raw[500] = (500.0, 1e6)
    assert extent([Curve("loss", [(0.0, 2.0), (1.0, 3.0)], "one", faint=raw)]).high < 4
    assert extent([Curve("loss", [(0.0, 2.0), (1.0, 1e6)], "one")]).high > 1e6, "an average is no lone peak"


def test_what_is_read_by_pointing() -> None:
    assert readings([Curve("loss", [(1.0, 2.0), (2.5, 3.0)], "one")], "{:.1f}".format) == [
        ["loss", [[1, "2.0"], [2.5, "3.0"]]]
    ]
    ((_, points),) = readings([Curve("loss", [(float(x), 0.0) for x in range(10_000)], "one")], str)
    assert len(points) <= 500


def test_the_charts_of_a_run(record: Callable[..., Record]) -> None:
    records = [record(2, 50), record(3, 100), record(4, 150)]
    lines = [{**line, "memory/process_gib": 1.5, "grad_norm": 0.5} for line in story().lines]
    told = with_operations(records, lines=lines)
    found = {chart.name: chart for chart in charts(told)}
    assert list(found) == ["loss", "size", "rate", "batch", "gradients", "speed", "memory"]
    names = [curve.name for curve in found["loss"].curves]
    assert names == ["training loss", "evaluation loss"]
    parameters, trainable = (curve.points for curve in found["size"].curves)
    assert parameters == [(0, 1_230_000), (50, 2_020_000), (100, 2_020_000), (150, 2_020_000), (200, 2_020_000)]
    assert [size for _, size in trainable][2:] == [1_800_000] * 3
    (batch,) = found["batch"].curves
    assert batch.points == [(0, 8.0), (50, 8.0), (100, 8.0), (150, 32.0), (200, 32.0)], "16 samples, accumulated twice"
    (speed,) = found["speed"].curves
    assert {value for _, value in speed.points} == {128.0} and len(speed.points) == 19, "64 tokens in half a second"
    two = replace(told, setup={"processes": 2})
    (batch,) = next(chart for chart in charts(two) if chart.name == "batch").curves
    assert batch.points[0] == (0, 16.0)


def test_what_was_undone_is_marked_as_that(record: Callable[..., Record]) -> None:
    one, other = record(2, 50), record(3, 100)
    event = {"event": "rolled_back", "index": 2, "step": 100, "before": 4.0, "loss": 5.0, "limit": 4.1, "until": 120}
    told = story(records=[one], changes=[Change(one), Change(other, undone=event)])
    assert [look for _, look, _ in frame_of(told).operations] == ["architecture", "freezing undone"]
    tree = made(told)
    table = section(tree, "operations")
    assert "undone" in words(table) and "5.000 at step 120, at most 4.100 allowed" in words(table)
    legend = words(section(tree, "loss"))
    assert "undone by its guard" in legend and "architecture changes" in legend and "freezing" not in legend
    assert "Phase 3" not in words(section(tree, "network")), "the run went on without it"
