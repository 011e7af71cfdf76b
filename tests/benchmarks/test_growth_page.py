"""The page of the growth experiment: figures computed by hand, what is missing, and that the docs are not stale."""

from __future__ import annotations

import json
import re
from math import inf
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.growth import page
from benchmarks.growth.experiment import described, load, variants
from benchmarks.growth.frontier import Frontier, Saving
from benchmarks.growth.picture import AXES, draw
from benchmarks.growth.reading import Trained, groups_of, read, telling, verdict
from benchmarks.growth.tables import SECTIONS, difference, times

EXPERIMENT = """
name: hand
target: {layers: 2, hidden: 16, heads: 2, mlp: 32}
block_size: 16
batch_size: 2
learning_rate: 1.0e-3
warmup_steps: 2
decay_share: 0.2
steps: 50
seeds: [0, 1, 2]
scratch: [100, 10]
recipes:
  # Depth, and
  # when
  one: {layers: 1, schedule: [{name: stack_layers, value: 2, when: {at_share: 0.5}}]}
  "one, memory fresh": # forgets
    layers: 1
    schedule:
      # not a title
      - {name: stack_layers, value: 2, when: {at_share: 0.5}}
  # Others
  two: {layers: 1, schedule: [{name: stack_layers, value: 2, when: {at_share: 0.1}}]}
  three: {layers: 1, schedule: [{name: stack_layers, value: 2, when: {at_share: 0.2}}]}
  four: {layers: 1, schedule: []}
"""
STEPS = {"scratch, 10 steps": 10, "scratch, 100 steps": 100}
RUNS: dict[str, list[tuple[float, float, float]]] = {  # loss, TFLOP, seconds of each seed
    "scratch, 10 steps": [(4.0, 1, 10)] * 3,
    "scratch, 100 steps": [(2.0, 100, 1000)] * 3,
    "one": [(3.0, 5, 20), (3.0, 5, 25), (3.0, 5, 50)],  # 10 TFLOP and 100 seconds from scratch
    "one, memory fresh": [(3.1, 5, 20), (3.2, 5, 20), (3.3, 5, 20)],
    "two": [(1.9, 20, 900)] * 3,  # beyond the frontier: of more than 100 TFLOP, and 1000 seconds
    "three": [(3.0, 20, 50)] * 2,
}
TEXT = {"name": "hand.txt", "characters": 1234567, "sha256": "0" * 64}
PAGE = "".join(f"<!-- growth: hand {part} -->\nold\n<!-- end -->\n" for part in SECTIONS)


def written(folder: Path, runs: dict[str, list[tuple[float, float, float]]], described_by: str = EXPERIMENT) -> Trained:
    """Results in a folder, and what is read of them."""
    file, results = folder / "hand.yaml", folder / "results" / "hand"
    file.write_text(described_by)
    results.mkdir(parents=True, exist_ok=True)
    experiment = load(file)
    for variant in variants(experiment):
        for seed, (loss, tera, seconds) in enumerate(runs.get(variant.name, [])):
            curve = [[share * tera * 1e12, share * seconds, loss + 1 - share] for share in (0.25, 0.5, 0.75, 1)]
            found = {**described(experiment, variant), "seed": seed, "text": TEXT, "loss": loss}
            found |= {"flops": tera * 1e12, "seconds": seconds, "curve": curve}
            (results / f"{variant.file}-{seed}.json").write_text(json.dumps(found))
    return read(file, folder / "results")


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return written(tmp_path, RUNS)


def cells(text: str, name: str) -> list[str]:
    """Of the row of a run."""
    (row,) = (line for line in text.splitlines() if f"| {name} |" in line)
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_recipes(trained: Trained) -> None:
    text = SECTIONS["recipes"](trained)
    assert re.findall("### (.*)", text) == ["Depth, and when", "Others"]
    seconds = f"{(5 + 4 + 2) / 3:.2f} (2.00 to 5.00)"
    one = ["1", "one", "3.000 ± 0.000", "5.00", "32", "2.00 (2.00 to 2.00)", seconds, "3", "pays"]
    assert cells(text, "one") == one
    ratios = [10 ** (2 * (4 - loss) / 2) / 5 for loss in (3.1, 3.2, 3.3)]  # 1.59, 1.26, 1.00
    saved = f"{sum(ratios) / 3:.2f} ({ratios[2]:.2f} to {ratios[0]:.2f})"
    assert cells(text, "one, memory fresh")[2:6] == ["3.200 ± 0.100", "5.00", "20", saved]
    assert cells(text, "one, memory fresh")[-1] == "no difference that these seeds show"
    two = [">5.00 (>5.00 to >5.00)", ">1.11 (>1.11 to >1.11)", "3", "pays; better than any run from scratch"]
    assert cells(text, "two")[5:] == two
    assert cells(text, "three")[5:] == ["0.50 (0.50 to 0.50)", "2.00 (2.00 to 2.00)", "2", "none yet: 2 of 3 seeds"]
    assert cells(text, "four")[2:] == ["-", "-", "-", "-", "-", "0", "not trained yet"]


def test_the_other_parts(trained: Trained) -> None:
    scratch = SECTIONS["scratch"](trained)
    assert cells(scratch, "scratch, 10 steps")[1:] == ["4.000 ± 0.000", "1.00", "10", "10.0 to 10.0", "3"]
    assert "left out" not in scratch  # two runs have none between them
    assert "| from scratch | 10, 100 steps |" in SECTIONS["setup"](trained)
    assert "saved by *two*" in SECTIONS["best"](trained) and ">5.00" in SECTIONS["best"](trained)
    (pair,) = SECTIONS["pairs"](trained).splitlines()[2:]
    worth = [10**-0.1, 10**-0.2, 10**-0.3]
    assert [cell.strip() for cell in pair.strip("|").split("|")] == [
        "one",
        "memory fresh",
        "+0.1000, +0.2000, +0.3000",
        "+0.2000",
        f"{sum(worth) / 3:.2f} ({worth[2]:.2f} to {worth[0]:.2f})",
        "worse in every seed",
    ]


def test_how_far_the_line_can_be_trusted(tmp_path: Path) -> None:
    more = EXPERIMENT.replace("scratch: [100, 10]", "scratch: [100, 10, 30]")
    middle = [(2.5, 10, 100), (2.6, 10, 100), (3.0, 10, 100)]  # the line says 10 ** 1.5, 10 ** 1.4, 10 TFLOP
    text = SECTIONS["scratch"](written(tmp_path, {**RUNS, "scratch, 30 steps": middle}, more))
    mean = (10**0.5 + 10**0.4 + 1) / 3
    assert f"{mean:.2f} (1.00 to {10**0.5:.2f}) times the FLOPs" in " ".join(text.split())


def test_a_pair_that_does_not_spend_the_same_is_none(tmp_path: Path) -> None:
    dearer = [(loss, 6.0, seconds) for loss, _, seconds in RUNS["one, memory fresh"]]
    assert (
        SECTIONS["pairs"](written(tmp_path, {**RUNS, "one, memory fresh": dearer})) == "None of the pairs is there yet."
    )


def test_what_is_missing_is_named(trained: Trained) -> None:
    lines = SECTIONS["missing"](trained).splitlines()
    assert lines == ["17 of 21 runs are there. Not trained yet:", "", "- three: seed 2", "- four: seeds 0, 1, 2"]


@pytest.mark.parametrize("there", [[], ["one"], ["scratch, 10 steps"], ["scratch, 10 steps", "one"], list(STEPS)])
def test_with_hardly_anything(tmp_path: Path, there: list[str]) -> None:
    trained = written(tmp_path, {name: RUNS[name][:1] for name in there})
    text = page.filled(PAGE, trained)
    assert "old" not in text and "No recipe has a verdict yet." in text
    if "one" in there:
        assert cells(text, "one")[5:] == ["-", "-", "1", "none yet: 1 of 3 seeds"]
    for axis in AXES.values():
        ElementTree.fromstring(draw(trained, axis))


def test_all_there(tmp_path: Path) -> None:
    trained = written(tmp_path, {**RUNS, "three": RUNS["one"], "four": RUNS["one"]})
    assert SECTIONS["missing"](trained) == "All 21 runs of the experiment are there."


def test_no_verdict_before_the_frontier_is_whole(tmp_path: Path) -> None:
    written(tmp_path, RUNS)
    (tmp_path / "hand.yaml").write_text(EXPERIMENT.replace("scratch: [100, 10]", "scratch: [100, 10, 500]"))
    trained = read(tmp_path / "hand.yaml", tmp_path / "results")
    text = SECTIONS["recipes"](trained)
    assert cells(text, "one")[5] == "2.00 (2.00 to 2.00)"
    assert cells(text, "one")[-1] == cells(text, "two")[-1] == "none yet: runs from scratch are missing"
    assert SECTIONS["best"](trained) == "No recipe has a verdict yet."


def test_a_control_is_no_recipe(tmp_path: Path) -> None:
    """It is told where it ends lower than the best recipe, and for how many times its FLOPs."""
    cheap, dear = "1.00 times its FLOPs: here the large model is not worth its cost.", "1.50 times its FLOPs."
    for loss, spent, told in ((1.5, 20, cheap), (1.5, 30, dear), (1.95, 20, "")):
        trained = written(tmp_path, {**RUNS, "four": [(loss, spent, 10.0)] * 3})
        sentence = SECTIONS["best"](trained)
        assert "saved by *two*" in sentence
        end = f" But *four*, which never grows, ends lower (1.500 against 1.900) with {told}" if told else "range)."
        assert sentence.endswith(end)


def test_none_that_pays(tmp_path: Path) -> None:
    trained = written(tmp_path, {**{name: RUNS[name] for name in STEPS}, "one": [(3.5, 100, 1)] * 3})
    assert SECTIONS["best"](trained) == "No recipe pays."


def test_a_result_of_another_experiment_is_refused(tmp_path: Path) -> None:
    written(tmp_path, RUNS)
    (tmp_path / "hand.yaml").write_text(EXPERIMENT.replace("steps: 50", "steps: 60"))
    with pytest.raises(ValueError, match=r"one-0\.json: is of a run with steps 50,"):
        read(tmp_path / "hand.yaml", tmp_path / "results")


def test_results_of_several_texts_are_refused(tmp_path: Path) -> None:
    written(tmp_path, RUNS)
    path = tmp_path / "results" / "hand" / "two-1.json"
    path.write_text(path.read_text().replace("hand.txt", "foot.txt"))
    read(tmp_path / "hand.yaml", tmp_path / "results")  # the same text under another name
    path.write_text(path.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(ValueError, match=r"two-1\.json: is of a run with text \{'name': 'foot\.txt'.*--results"):
        read(tmp_path / "hand.yaml", tmp_path / "results")


@pytest.mark.parametrize("damage", ["", '{"name": "two"}', "[]"])
def test_what_is_no_result_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path, RUNS)
    (tmp_path / "results" / "hand" / "two-1.json").write_text(damage)
    with pytest.raises(ValueError, match=r"two-1\.json: is no result of a run"):
        read(tmp_path / "hand.yaml", tmp_path / "results")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--results", "nowhere"], "nowhere/hand: no result of hand.yaml is there"),
        (["--experiment", "nowhere.yaml"], "No such file or directory: 'nowhere.yaml'"),
        (["--experiment", "empty.yaml"], "empty.yaml: is no experiment (Input should be"),
        (["--docs", "nowhere"], "--docs nowhere: is no folder"),
    ],
)
def test_a_page_is_not_emptied_by_a_mistake(
    tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, RUNS)
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "growth.md").write_text(PAGE)
    (tmp_path / "empty.yaml").write_text("")
    command = ["page", "--experiment", "hand.yaml", "--results", "results", "--docs", "docs", *words]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as refused:
        page.main()
    assert refused.value.code == 2 and said in capsys.readouterr().err
    assert (docs / "growth.md").read_text() == PAGE and sorted(docs.iterdir()) == [docs / "growth.md"]


def test_where_no_page_asks_it_is_said_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, RUNS)
    (tmp_path / "docs").mkdir()
    words = ["--experiment", tmp_path / "hand.yaml", "--results", tmp_path / "results", "--docs", tmp_path / "docs"]
    monkeypatch.setattr("sys.argv", ["page", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        page.main()
    assert ended.value.code == 0 and "<!-- growth: hand recipes -->" in capsys.readouterr().out


def test_written_once_and_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, RUNS)
    docs = tmp_path / "docs"
    docs.mkdir()
    kept = "before\n<!-- growth: other recipes -->\nkept\n<!-- end -->\nafter\n"
    (docs / "growth.md").write_text(f"{kept}{PAGE}")
    (tmp_path / "README.md").write_text("<!-- growth: hand best -->\n<!-- end -->\n")
    options = ["page", "--experiment", str(tmp_path / "hand.yaml"), "--results", str(tmp_path / "results")]

    def run(*more: str) -> tuple[int, dict[str, str]]:
        monkeypatch.setattr("sys.argv", [*options, "--docs", str(docs), *more])
        with pytest.raises(SystemExit) as ended:
            page.main()
        files = [tmp_path / "README.md", *(path for path in docs.rglob("*") if path.is_file())]
        return int(ended.value.code or 0), {path.name: path.read_text() for path in files}

    assert run("--check")[0] == 1
    assert (docs / "growth.md").read_text() == f"{kept}{PAGE}"
    code, files = run()
    assert code == 0
    assert sorted(files) == ["README.md", "growth.md", "growth_hand_flops.svg", "growth_hand_seconds.svg"]
    assert files["growth.md"].startswith(kept) and "saved by *two*" in files["README.md"]
    assert "- three: seed 2" in capsys.readouterr().out
    assert run() == run("--check") == (0, files)


def test_a_part_that_there_is_not(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"figures.*there is no such part"):
        page.filled("<!-- growth: hand figures -->\n<!-- end -->", trained)


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([(1.06, 1.06)] * 3, "pays"),
        ([(1.04, 1.04), (2, 2), (2, 2)], "no difference that these seeds show"),
        ([(0.94, 0.94)] * 3, "costs more"),
        ([(0.96, 0.96), (0.5, 0.5), (0.5, 0.5)], "no difference that these seeds show"),
        ([(1.5, inf), (1.2, 1.2), (1.2, 1.2)], "pays"),
        ([(1.5, inf)] * 3, "pays; better than any run from scratch"),
        ([(0.9, inf)] * 3, "what it saves is not known; better than any run from scratch"),
        ([(0, 0.9)] * 3, "costs more; worse than the shortest run from scratch"),
        ([(0, 1.2)] * 3, "what it saves is not known; worse than the shortest run from scratch"),
        ([(0, inf), (2, 2), (2, 2)], "none yet: a seed has no line from scratch"),
        ([(2, 2)] * 2, "none yet: 2 of 3 seeds"),
    ],
)
def test_verdicts(bounds: list[tuple[float, float]], told: str) -> None:
    ones = (1.0,) * len(bounds)
    assert verdict(Saving("x", tuple(range(len(bounds))), ones, ones, tuple(bounds))) == told


@pytest.mark.parametrize(
    ("bounds", "told"),
    [
        ([(2, 2)], "2.00"),
        ([(1.5, inf), (1, 1)], ">1.25 (1.00 to >1.50)"),
        ([(0, 1), (2, 2)], "<1.50 (<1.00 to 2.00)"),
        ([(0, inf), (2, 2)], "2.00"),
        ([(0, inf)], "-"),
    ],
)
def test_ratios_and_bounds(bounds: list[tuple[float, float]], told: str) -> None:
    ones = (1.0,) * len(bounds)
    assert times(Saving("x", tuple(range(len(bounds))), ones, ones, tuple(bounds))) == told


def test_differences() -> None:
    assert difference([0.1, 0.2, -0.1], [], [0, 1, 2]) == "no difference that these seeds show"
    assert difference([-0.1, -0.2, -0.1], [], [0, 1, 2]) == "better in every seed"
    assert difference([-0.1, -0.2, -0.1], [1.1, 1.2, 1.04], [0, 1, 2]) == "better in every seed"
    small = difference([0.1, 0.2, 0.1], [1.0, 0.97, 1.0], [0, 1, 2])
    assert small == "worse in every seed, by less than 5 % of the FLOPs"
    assert difference([0.1, 0.2], [], [0, 1, 2]) == "none yet: 2 of 3 seeds"


def test_beyond_the_frontier_there_are_bounds() -> None:
    frontier = Frontier.of([(1, 4.0), (100, 2.0)])
    assert frontier.enclosed(1.0) == (100, inf)
    assert frontier.enclosed(5.0) == (0, 1)
    assert list(frontier.enclosed(3.0)) == pytest.approx([10, 10])


def test_groups() -> None:
    assert groups_of(EXPERIMENT) == {
        "Depth, and when": ["one", "one, memory fresh"],
        "Others": ["two", "three", "four"],
    }
    small = groups_of((page.HERE / "small.yaml").read_text())
    assert [name for names in small.values() for name in names] == list(
        read(page.HERE / "small.yaml", Path("nowhere")).experiment.recipes
    )


def test_pictures(trained: Trained) -> None:
    assert telling(trained) == ["one", "two", "three"]  # the best of each group, and the worst
    for key, axis in AXES.items():
        picture = draw(trained, axis)
        assert picture == draw(trained, axis)
        root = ElementTree.fromstring(picture)
        texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"from scratch", "one", "two", "three", "1", "2", "3", "4", "10", "100"} <= set(texts), key
        assert "prefers-color-scheme: dark" in picture


def test_means_over_the_seeds(trained: Trained) -> None:
    assert trained.mean("one", "seconds") == pytest.approx(95 / 3)
    assert list(trained.curve("one", 1)[-1]) == pytest.approx([95 / 3, 3.0])


def names_in_docs() -> list[str]:
    pages = [page.ROOT / "README.md", *sorted((page.ROOT / "docs").rglob("*.md"))]
    return sorted({name for path in pages for name in page.experiments(path.read_text(encoding="utf-8"))})


def test_there_is_an_experiment_in_the_docs() -> None:
    assert "small" in names_in_docs()


@pytest.mark.parametrize("name", names_in_docs())
def test_the_docs_are_made_of_the_kept_results(name: str) -> None:
    trained = read(page.HERE / f"{name}.yaml", page.RESULTS)
    for path, text in page.made(trained, page.ROOT / "docs").items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is stale; run: python -m benchmarks.growth.page"
