"""The page as a whole: strict HTML5, nothing from outside, nothing that a run's texts could make of it."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace

from morphing_trainer.reporting.growth import ARCHITECTURE
from morphing_trainer.reporting.journal import COLUMNS, Change
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report import tables
from morphing_trainer.reporting.report.page import MOST_PHASES, page
from morphing_trainer.reporting.report.samples import MOST_SHOWN, samples, spread, visible
from morphing_trainer.reporting.report.story import Story
from morphing_trainer.run.folder import REPORT_MARK
from morphing_trainer.run.standing import KILLED, RUNNING, Standing
from tests.reporting.report.hostile import EVIL, NASTY, hostile
from tests.reporting.report.support import (
    all_of,
    attributes,
    figure,
    made,
    name_of,
    pairs,
    read,
    rows,
    section,
    story,
    with_operations,
    words,
)

HTML = frozenset(
    (
        *("html", "head", "meta", "title", "style", "script", "body", "header", "main", "footer", "section", "article"),
        *(
            "nav",
            "p",
            "h1",
            "h2",
            "h3",
            "ul",
            "ol",
            "li",
            "a",
            "span",
            "b",
            "i",
            "strong",
            "code",
            "pre",
            "bdi",
            "mark",
        ),
        *("dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
        *("fieldset", "legend", "label", "input", "output", "details", "summary"),
        *("svg", "defs", "pattern", "rect", "line", "path", "circle", "text", "g"),
    )
)


def check(text: str, found: Story) -> None:
    """What holds of every page."""
    raw = text.encode()
    assert raw.index(REPORT_MARK) < 1000
    tree = read(text)
    assert {name_of(element) for element in tree.iter() if isinstance(element.tag, str)} <= HTML
    assert len(all_of(tree, "script")) == 3 and len(all_of(tree, "style")) == 1
    for element, name, value in attributes(tree):
        assert not name.startswith("on") and name not in ("src", "style", "srcset", "action", "formaction"), (
            element,
            name,
        )
        assert name != "href" or value.startswith("#"), value
        assert "url(" not in value
    names = [value for _, name, value in attributes(tree) if name == "id"]
    assert len(names) == len(set(names)), "ids are unique"
    for _, name, value in attributes(tree):
        if name == "href" or name == "aria-labelledby":
            assert value.lstrip("#") in names, f"{value} leads nowhere"
    assert len(all_of(tree, "h1")) == 1
    for picture in all_of(tree, "svg"):
        assert picture.get("aria-hidden") == "true" or picture.get("aria-label") or not picture.get("class")
    for table in all_of(tree, "table"):
        wide = {len(list(row)) for row in all_of(table, "tr") if not all_of(row, "td", class_="left-out")}
        assert len(wide) == 1, "all rows of a table have as many cells"
    policy = next(meta.get("content") or "" for meta in all_of(tree, "meta") if meta.get("http-equiv"))
    style, script = all_of(tree, "style")[0].text or "", all_of(tree, "script")[-1].text or ""
    for kind, content in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"@import|url\((?!#)", style)
    assert page(found) == text, "the same run, the same bytes"


def test_a_plain_run() -> None:
    found = story()
    check(page(found), found)
    tree = made(found)
    assert words(all_of(tree, "h1")[0]) == "demo" and "finished at step 200" in words(all_of(tree, "header")[0])
    for name in ("operations", "schedule", "config", "samples"):
        assert all_of(section(tree, name), "p", class_="empty"), "it says that there is none"


def test_a_logarithmic_axis_is_called_one() -> None:
    tree = made(story(lines=[{"step": step, "loss": 2.0, "grad_norm": step / 10} for step in (100, 200)]))
    (norm,) = all_of(tree, "figure", class_="gradients")
    assert "Gradient norm logarithmic scale" in words(norm)
    (curves,) = all_of(norm, "svg", class_="curves")
    assert "over 200 optimizer steps, on a logarithmic scale;" in curves.get("aria-label", "")
    assert "logarithmic scale" not in words(section(tree, "loss"))


def test_nothing_that_a_run_says_does_anything(record: Callable[..., Record]) -> None:
    found = hostile(record)
    text = page(found)
    check(text, found)
    assert len(text.encode()) < 400_000
    tree = read(text)
    assert words(all_of(tree, "h1")[0]) == EVIL, "it stands there, as text"
    assert "49" not in words(all_of(tree, "h1")[0])
    assert "NaN" in words(section(tree, "loss"))


def test_every_text_of_a_sample_is_shown_as_text(record: Callable[..., Record]) -> None:
    tree = made(hostile(record))
    shown = words(section(tree, "samples"))
    assert "window.pwned=1" in shown and "more characters" in shown and "\u23ce\u00d71200" in shown
    assert "\u202e" not in shown and "\x00" not in shown and "(nothing)" in shown
    texts = all_of(section(tree, "samples"), "div", class_="text")
    assert len(texts) == 3 * 8 and all(element.get("dir") == "auto" for element in texts), "8 prompts of 9"


def test_unfinished_and_empty_runs() -> None:
    for standing in (Standing("r"), Standing("r", state=RUNNING, process=3), Standing("r", state=KILLED, step=7)):
        bare = Story("r", "r", standing)
        check(page(bare), bare)
        assert "Nothing has been logged yet" in words(section(made(bare), "loss"))
    found = story(lines=[{"step": 5, "loss": math.nan}], stages={})
    check(page(found), found)
    one = story(lines=[{"step": 5, "eval_loss": 2.5}])
    check(page(one), one)
    assert len(all_of(section(made(one), "loss"), "circle", class_="dot")) == 3, "linear, logarithmic, legend"


def test_the_figures() -> None:
    standing = replace(story().standing, seconds=100.0, tokens=12_800, undone=1, operations=2)
    standing.loss = {"step": 200, "loss": 4.2074}
    standing.evaluation, standing.best = {"step": 200, "loss": 4.5}, {"step": 150, "loss": 4.25}
    lines = [{**line, "memory/process_gib": line["step"] / 100} for line in story().lines]
    tree = made(story(standing=standing, lines=lines, flops=3.5e12, exact=True, totals={"loss": 5.0}))
    assert figure(tree, "Evaluation loss") == ("4.500", "at step 200")
    assert figure(tree, "Best evaluation loss") == ("4.250", "at step 150")
    assert figure(tree, "Training loss") == ("4.207", "at step 200, 5.000 on average")
    assert figure(tree, "Steps") == ("200", "all of them")
    assert figure(tree, "Tokens") == ("12.8k", "13 per parameter")
    assert figure(tree, "Computation") == ("3.50 TFLOP", "counted from the shapes of the model")
    assert figure(tree, "Parameters") == ("1.00k", "2 \u00d7 16, mlp 64")
    assert figure(tree, "Training time")[0] == "1 min 40 s"
    assert figure(tree, "Tokens per second") == ("128", "0.500 s per step, all included")
    assert figure(tree, "Peak memory") == ("2 GiB", "of the process, as logged")
    assert figure(tree, "Operations") == ("2", "1 undone by guards")
    estimated = made(story(flops=3.5e12))
    assert "estimate" in figure(estimated, "Computation")[1]


def test_how_to_load_it_and_how_it_was_started() -> None:
    standing = replace(story().standing, result="model")
    setup = {"command": ["train.py", "--config", "a b.yaml", "it's"], "versions": {"torch": "2.13.0"}, "device": "cpu"}
    tree = made(story(standing=standing, path='runs/"demo"', tokenizer=True, setup=setup))
    code, command = (element.text or "" for pre in all_of(tree, "pre") for element in pre)
    compile(code, "page", "exec")
    assert 'AutoModelForCausalLM.from_pretrained("runs/\\"demo\\"/model")' in code and "AutoTokenizer" in code
    assert command == "train.py --config 'a b.yaml' 'it'\"'\"'s'"
    assert "torch\xa02.13.0" in "".join(all_of(tree, "footer")[0].itertext())
    assert "AutoTokenizer" not in words(made(story(standing=standing)))


def test_very_many_operations(record: Callable[..., Record]) -> None:
    """Of all that there may be any number of, the first and the last are shown, and how many are not."""
    many = 3000
    records = [replace(record(2 if number % 2 else 3, number), index=number) for number in range(many)]
    found = with_operations(records, lines=[{"step": many, "loss": 1.0}])
    text = page(found)
    check(text, found)
    assert len(text.encode()) < 1_500_000
    tree = read(text)
    (journal,) = all_of(section(tree, "operations"), "table", class_="journal")
    told = rows(journal)
    assert len(told) == tables.MOST_OPERATIONS + 1 and "2,700 rows are left out" in told[150][0]
    assert [told[0][0], told[-1][0]] == ["1", "3000"]
    assert len(all_of(section(tree, "network"), "li", class_="phase")) == MOST_PHASES + 1


def test_the_journal_table(record: Callable[..., Record]) -> None:
    records = [replace(record(2, 50, (4.5, 4.25)), note="attn rank 0 -> 4"), record(4, 100)]
    tree = made(with_operations(records))
    (journal,) = all_of(section(tree, "operations"), "table", class_="journal")
    assert len(tables.HEADINGS) == len(COLUMNS)
    first, second = rows(journal)
    assert first[:2] == ["1", "50"] and "attn rank 0 \u2192 4" in first[2]
    assert "layers 4 \u2192 8" in first[4] and first[6] == "4.500 \u2192 4.250"
    assert "batch 8 \u2192 16" in second[4]
    row = next(row for row in all_of(journal, "tr") if row.get("id") == "op-1")
    assert ARCHITECTURE in (row.get("class") or "")


def test_the_schedule_says_what_became_of_it(record: Callable[..., Record]) -> None:
    listed = [
        {"name": "change_lr", "value": 2.0, "trigger_loss": 4.5, "max_wait_iters": 100},
        {
            "name": "stack_layers",
            "value": 2,
            "when": {"stage": {"name": "a", "then": {"waited": 3}}},
            "init": "identity",
        },
        {"name": "widen_mlp", "value": 2, "max_wait_iters": 5},
        {"repeat": "end", "operations": [{"name": "reset_lr_schedule", "value": None, "max_wait_iters": 99}]},
    ]
    one, two = record(1, 20), record(2, 50)
    events = [{"event": "start", "step": 0, "schedule": listed}]
    told = story(records=[one], changes=[Change(one), Change(two, undone={"step": 50})], events=events)
    (table,) = all_of(section(made(told), "schedule"), "table")
    assert rows(table) == [
        ["1", "change_lr 2", "loss below 4.5 or after 100 steps", "", "step 20"],
        ["2", "stack_layers 2", "{stage: {name: a, then: {waited: 3}}}", "init: identity", "step 50, undone"],
        ["3", "widen_mlp 2", "after 5 steps", "", "not applied"],
        ["\u21bb", "reset_lr_schedule", "after 99 steps", "", "repeated to the end: 0 applied in all"],
    ]


def test_arguments() -> None:
    arguments = {"training": {"learning_rate": 2e-5, "seed": 42, "bf16": False}, "data": {"train_file": ["a", "b"]}}
    tree = made(
        story(setup={"arguments": arguments, "changed": {"training": ["learning_rate"], "data": ["train_file"]}})
    )
    config = section(tree, "config")
    names = [words(heading) for heading in all_of(config, "h3")]
    assert list(zip(names, map(pairs, all_of(config, "dl")), strict=True)) == [
        ("training", [["learning_rate", "2e-5"]]),
        ("data", [["train_file", "[a, b]"]]),
        ("training", [["seed", "42"], ["bf16", "false"]]),
    ]


def test_samples_are_grouped_by_prompt_and_spread_over_the_run() -> None:
    examples = [
        {"step": step, "name": "", "prompt": "p", "truth": "abc", "prediction": f"ab{step}"}
        for step in range(0, 1000, 10)
    ]
    examples.append({"step": 1000, "name": "books", "prompt": "q", "truth": "t", "prediction": "x\n\n\n\ny\nz"})
    (first, second), more = samples(story(examples=examples))
    assert (first.many, first.first, first.last, more) == (100, 0, 990, 0) and len(first.shown) == MOST_SHOWN
    assert [first.shown[0][0], first.shown[-1][0]] == [0, 990]
    assert first.shown[0][1].startswith('<mark title="as in the truth">ab</mark>0')
    assert second.name == "books" and "\u23ce\u00d74" in second.shown[0][1]
    assert spread(5, 12) == [0, 1, 2, 3, 4] and spread(101, 3) == [0, 50, 100]
    assert "(nothing)" in visible("") and "(spaces)" in visible("  ")
    assert len(NASTY) == 9


def test_phases_have_the_facts_that_changed_in_bold(record: Callable[..., Record]) -> None:
    tree = made(with_operations([record(2, 50)]))
    _, second = all_of(section(tree, "network"), "li", class_="phase")
    assert {words(strong) for strong in all_of(second, "strong")} == {"8 \u00d7 128, mlp 512", "2.02M"}
    assert "trainedall" in words(second)
