"""The report in a real browser: light and dark, narrow and wide, with scripts and without, on paper."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.page import page
from morphing_trainer.run.reporting import write_report
from tests.reporting.report.hostile import hostile
from tests.support import staged_data, trainer
from tests.trainer.common import entry

LOOKS = (Path(__file__).parent / "looking.js").read_text()
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (390, 1440)]
SCHEDULE = [
    entry("change_lr", 0.5, 1),
    entry("stack_layers", 2, 2, desc="deeper"),
    entry("freeze_layer", ["wte", "mlp.1"], 2),
    entry("set_attn_lora_rank", 4, 2),
    entry("widen_mlp", 2, 3),
    *[entry("change_lr", 0.99, 1) for _ in range(6)],
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a real run in three stages, with operations of all kinds, and texts."""
    folder = tmp_path_factory.mktemp("runs") / "staged"
    options: dict[str, Any] = {"eval_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 4}
    trainer(folder, SCHEDULE, stages=staged_data(), **options).train()
    examples = [
        {"step": step, "name": "", "prompt": "Once upon", "truth": " a time", "prediction": f" a {step}\n\n\n\n\nx"}
        for step in (3, 6, 9)
    ]
    (folder / "stats" / "examples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in examples))
    return write_report(folder)


@contextmanager
def opened(browser: Any, path: Path, scheme: str = "light", width: int = 1440, **options: Any) -> Iterator[Any]:
    """The page, which must load nothing and complain of nothing."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    faults: list[str] = []
    view = context.new_page()
    view.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on("request", lambda request: faults.append(request.url) if request.url != path.as_uri() else None)
    view.on("dialog", lambda dialog: faults.append(dialog.message))
    view.goto(path.as_uri())
    yield view
    context.close()
    assert faults == []


def check_layout(view: Any) -> None:
    wide, room = view.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room, "nobody has to scroll sideways"
    charts = view.evaluate("charts()")
    assert len(charts) >= 2
    assert all(chart["width"] > 50 and chart["height"] > 50 and chart["drawn"] for chart in charts)
    assert view.evaluate("outside()") == []


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
def test_it_can_be_read(browser: Any, report: Path, scheme: str, width: int) -> None:
    with opened(browser, report, scheme, width) as view:
        view.evaluate(LOOKS)
        check_layout(view)
        view.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        texts = view.evaluate("faintTexts()")
        assert texts["count"] > 300 and texts["faint"] == [], "contrast of at least 4.5 to 1 (WCAG AA)"
        assert view.evaluate("faintShapes()") == [], "shapes: 3 to 1"
        for selector in (".chip rect", "#loss .linear .curves > .tick", ".phase", ".figures div", "h2, h3, p, table"):
            assert view.evaluate(f"covered({selector!r})") == [], selector
        ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")


def test_curves_are_told_apart_without_colour(browser: Any, report: Path) -> None:
    with opened(browser, report) as view:
        looks = view.evaluate(
            """[...document.querySelectorAll("figure.chart")].map((figure) =>
                [...figure.querySelectorAll(".plot:not(.log) path.curve")].map((curve) => {
                    const style = getComputedStyle(curve);
                    return [style.strokeDasharray, style.strokeWidth].join();
                }))"""
        )
        assert any(len(each) > 1 for each in looks)
        assert all(len(set(each)) == len(each) for each in looks)
        dashes = "(line) => getComputedStyle(line).strokeDasharray"
        marks = view.evaluate(f"[...document.querySelectorAll('#loss .marks line')].map({dashes})")
        assert len(set(marks)) == len(marks) == 3


def test_it_is_whole_without_scripts(browser: Any, report: Path) -> None:
    with opened(browser, report) as view:
        with_scripts = view.inner_text("body")
    with opened(browser, report, java_script_enabled=False) as view:
        assert view.inner_text("body") == with_scripts
        for place in ("#loss .linear svg.curves", "#network svg.network", "#curves svg.curves", "#time svg"):
            box = view.locator(place).first.bounding_box()
            assert box and box["width"] > 50
        assert not view.is_visible("#loss .plot.log")
        view.check(".to-log")
        assert view.is_visible("#loss .plot.log") and not view.is_visible("#loss .plot.linear"), "by style alone"


def test_values_are_told_where_one_points(browser: Any, report: Path) -> None:
    lines = [json.loads(line) for line in (report.parent / "stats" / "history.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    end = max(losses)
    with opened(browser, report) as view:
        curves = view.locator("#loss .linear svg.curves")
        curves.scroll_into_view_if_needed()
        box = curves.bounding_box()
        told = view.locator("#loss output")
        assert told.text_content() == ""
        step = end // 2
        view.mouse.move(box["x"] + box["width"] * step / end, box["y"] + box["height"] / 2)
        assert f"training loss {losses[step]:#.4g} (step {step})" in (told.text_content() or "")
        assert view.locator("figure.rate output").text_content() != "", "all charts tell theirs"
        assert view.locator("#loss .linear .cursor").get_attribute("visibility") == "visible"
        view.mouse.move(2, 2)
        assert told.text_content() == ""
        curves.focus()
        view.keyboard.press("End")
        for _ in range(60):
            view.keyboard.press("ArrowRight")
        assert f"(step {end})" in (told.text_content() or "")
        view.keyboard.press("Escape")
        assert told.text_content() == ""


def test_numbers_lead_to_the_journal(browser: Any, report: Path) -> None:
    with opened(browser, report) as view:
        view.locator("#loss .linear g.wide a.chip").nth(1).click()
        assert view.evaluate("[location.hash, document.querySelector(':target').className]") == [
            "#op-2",
            "architecture",
        ]
        assert view.locator("tr:target").is_visible()


def test_tables_scroll_in_their_box_and_paper_shows_all(browser: Any, report: Path) -> None:
    with opened(browser, report, width=390) as view:
        box = view.locator("#operations .scroll").first
        assert box.evaluate("each => each.scrollWidth > each.clientWidth")
        assert box.evaluate("each => each.tabIndex === 0 && each.getAttribute('role') === 'region'"), "by keyboard, too"
        for name in ("#time", "#operations"):
            shade = view.locator(f"{name} .scroll").first.evaluate("each => getComputedStyle(each).backgroundImage")
            assert shade.count("gradient") == 4, "a shade at the side where there is more"
        bars = view.locator("#time .scroll").evaluate("each => [each.scrollWidth, each.clientWidth]")
        assert bars[0] == bars[1], "all of a bar is seen"
    with opened(browser, report, width=794) as view:  # A4
        view.emulate_media(media="print")
        assert view.evaluate("document.documentElement.scrollWidth") <= 794
        assert not view.is_visible("nav") and view.is_visible("#loss .plot.linear")
        assert view.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_that_a_run_says_does_harm(
    browser: Any, tmp_path: Path, record: Callable[..., Record], width: int
) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(page(hostile(record)), encoding="utf-8")
    with opened(browser, path, width=width) as view:
        view.evaluate(LOOKS)
        check_layout(view)
        assert view.evaluate("typeof window.pwned") == "undefined"
        assert view.locator("img, iframe, object, embed, link, form, base").count() == 0
        assert view.evaluate("faintTexts().faint") == []


def test_the_policy_is_in_force(browser: Any, report: Path) -> None:
    """Control: were a script or picture on the page, it would not run or be fetched."""
    context = browser.new_context()
    view = context.new_page()
    told: list[str] = []
    view.on("console", lambda message: told.append(message.text))
    view.goto(report.as_uri())
    view.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.pwned = 1";
            document.body.append(script);
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/x.png";
            document.body.append(image);
        }"""
    )
    view.wait_for_timeout(100)
    assert view.evaluate("typeof window.pwned") == "undefined"
    assert sum("Content Security Policy" in text for text in told) == 2
    context.close()
