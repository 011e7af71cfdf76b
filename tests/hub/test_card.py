"""The card, from what is known of a run: what it says, its metadata, and that nothing in it is more than text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from morphing_trainer.hub.card import card
from morphing_trainer.hub.data import EMBEDDED, Source, sources
from morphing_trainer.hub.told import ModelFacts, Told, tell
from morphing_trainer.reporting.journal import Change
from morphing_trainer.reporting.records import Record

CONFIG = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_inner": 512, "vocab_size": 2048, "n_positions": 128}
BEFORE = {"layers": 2, "hidden": 128, "mlp": 256, "parameters": 543_744, "trainable": 543_744, "loss": 5.76}
HOSTILE = (
    "</td><script>alert(1)</script> | x | [a](javascript:alert(1)) **b** `c` \x1b[31m\n---\n# h $$e$$ ![i](http://x)"
)


def record(**changes: Any) -> Record:
    after = {**BEFORE, "layers": 4, "parameters": 808_704, "trainable": 808_704, "loss": 5.755}
    values: dict[str, Any] = {
        "index": 0,
        "operation": "stack_layers",
        "value": 2.0,
        "desc": "twice as deep",
        "trigger": "loss 5.7 < 5.8",
        "step": 140,
        "tokens": 143_232,
        "before": BEFORE,
        "after": after,
        "seconds": 0.4,
        "preserving": True,
        "moments": {"carried": 543_744, "scaled": 0, "newborn": 264_960, "dropped": 0},
        "multipliers": {},
    }
    return Record(**{**values, **changes})


def told(**changes: Any) -> Told:
    lines = [
        {"step": 100, "loss": 5.9, "tokens": 102_400},
        {"step": 200, "eval_loss": 5.1, "eval_perplexity": 164.0, "eval_token_accuracy": 0.11},
        {"step": 260, "eval_loss": 5.2, "eval_perplexity": 181.3, "eval_token_accuracy": 0.105},
    ]
    began = {"event": "start", "step": 0, "seed": 42, "settings": {"learning_rate": 2e-3, "batch_size": 8}}
    facts = Told(
        model=ModelFacts(CONFIG, 1_071_872),
        step=260,
        end=260,
        tokens=265_984,
        seconds=40.4,
        epoch=2.18,
        finished=True,
        began={**began, "schedule": [{"name": "stack_layers"}]},
        changes=[Change(record())],
        lines=lines,
    )
    return replace(facts, **changes)


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_what_a_person_finds_in_it() -> None:
    found = ModelCard(card(told(), "me/grown"))
    parts = sections(found.text)
    assert list(parts) == [
        *("Load it", "How it grew", "Figures", "Final shape", "Training", "Files beside the model"),
    ]
    assert found.text.strip().startswith(
        "# grown\n\nA GPT-2 language model with 1.07M parameters (4 layers, width 128)."
    )
    assert (
        "It began as a new model with 544k parameters (2 layers, width 128), and 1 operation changed it" in found.text
    )
    assert "The training took 260 steps on 266k tokens." in found.text
    assert 'AutoModelForCausalLM.from_pretrained("me/grown")' in parts["Load it"]
    (row,) = [line for line in parts["How it grew"].splitlines() if "stack_layers" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("140", "`stack_layers 2`<br>twice as deep", "loss 5.7 &lt; 5.8", "layers 2 → 4", "809k", "5.760 → 5.755"),
        "67% carried, 33% newborn",
    ]
    assert "5.200 (best: 5.100 at step 200)" in parts["Figures"] and "10.5%" in parts["Figures"]
    assert "266k (0.2 per parameter)" in parts["Figures"] and "1,071,872" in parts["Final shape"]


def test_what_the_hub_reads(tmp_path: Path) -> None:
    plain = ModelCard(card(told(), "me/grown")).data.to_dict()
    assert plain == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["morphing_trainer", "generated_from_trainer", "gpt2"],
    }
    arguments = {"data": {"dataset_name": "Salesforce/wikitext", "dataset_config": "wikitext-2-raw-v1"}}
    data = sources(arguments, tmp_path / "run")
    adapted = told(base="openai-community/gpt2", data=data, model=ModelFacts(CONFIG, 1_100_000, 8, 24))
    found = ModelCard(card(adapted, "me/grown", license="mit", tags=["x", "gpt2"], model_name="Fables"))
    read = found.data.to_dict()
    assert read["base_model"] == "openai-community/gpt2" and read["base_model_relation"] == "finetune"
    assert read["library_name"] == "peft" and read["license"] == "mit" and read["datasets"] == ["Salesforce/wikitext"]
    assert read["tags"] == ["morphing_trainer", "generated_from_trainer", "gpt2", "lora", "x"]
    (model,) = read["model-index"]
    assert model["name"] == "Fables" and "# Fables" in found.text
    (result,) = model["results"]
    assert result["dataset"] == {
        "name": "Salesforce/wikitext",
        "type": "Salesforce/wikitext",
        "config": "wikitext-2-raw-v1",
    }
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        *(("loss", 5.2), ("perplexity", 181.3), ("accuracy", 0.105)),
    ]
    assert "rank 8 on 24 modules" in found.text and "pip install transformers torch peft" in found.text


def test_a_run_in_the_middle_and_what_was_undone() -> None:
    undone = {"before": 5.0, "loss": "nan", "limit": 5.2, "reason": None, "until": 180}
    text = card(told(finished=False, step=200, changes=[Change(record(), undone=undone)]), "me/grown")
    assert "**This is a state in the middle of training, after step 200 of 260.**" in text
    assert "~~`stack_layers`~~ (undone)" in text and "was undone: the loss went from 5.000 to NaN." in text


def test_a_model_that_no_run_has_trained() -> None:
    text = card(Told(ModelFacts(CONFIG, 1_071_872)), "me/new")
    assert "How it grew" not in text and "journal" not in text and "Final shape" in text


@pytest.mark.parametrize("place", ["desc", "trigger", "note", "operation"])
def test_hostile_texts_are_text(place: str) -> None:
    """A table has the cells that it had, and no tag, link, heading or picture comes of what somebody has written."""
    data = [*sources({"data": {"dataset_name": HOSTILE}}, Path("run")), Source("files", stage=HOSTILE, config=HOSTILE)]
    facts = told(changes=[Change(record(**{place: HOSTILE}))], data=data, versions={"torch": HOSTILE})
    text = card(facts, "me/grown", model_name=HOSTILE, tags=[HOSTILE], license=HOSTILE)
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(header)["license"] == HOSTILE
    assert "\x1b" not in body
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    honest = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(card(replace(facts, changes=[Change(record())]), "me/grown").split("\n---\n", 1)[1])
    )
    assert "<script" not in html and "<img" not in html and "javascript:" not in re.sub(r">[^<]*<", "><", html)
    for tag in ("<tr>", "<td", "<h1>", "<h2>", "<hr", "<a "):
        assert html.count(tag) == honest.count(tag), tag


def test_a_run_whose_files_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(
        '{"event": "start", "step": 0, "spec": {"config": {"_name_or_path": "gpt2"}}}\n{'
    )
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats/setup.json").write_text("[1]")
    (tmp_path / "stats/progress.json").write_text("no")
    found = tell(ModelFacts(CONFIG, 5), tmp_path)
    assert found.base == "gpt2" and "It began as [gpt2]" in card(found, "me/x")


def test_what_it_was_trained_on(tmp_path: Path) -> None:
    """Names of the Hub's are told as such; of a person's own files, the names of the files."""
    (tmp_path / "data" / "mine").mkdir(parents=True)
    run = tmp_path / "runs" / "a"
    files = "files of its author's own"
    for given, expected in {
        "Salesforce/wikitext": Source("Salesforce/wikitext", True),
        "data/mine": Source(f"{files} (mine)"),
        "/home/bob/corpora/letters": Source(f"{files} (letters)"),
        "[x](y)": Source(f"{files} ([x](y))"),
        None: Source(EMBEDDED),
    }.items():
        assert sources({"data": {"dataset_name": given}}, run) == [expected]
    many = [f"/srv/{number}.txt" for number in range(7)]
    shown = f"{files} (0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more)"
    assert sources({"data": {"train_file": many}}, run) == [Source(shown)]
    planned = sources({"data": {"plan": "wikitext"}}, run)
    assert [(source.stage, source.name, source.config) for source in planned] == [
        ("start", "Salesforce/wikitext", "wikitext-2-raw-v1"),
        ("main", "Salesforce/wikitext", "wikitext-103-raw-v1"),
    ]
    assert sources({"data": {"plan": "/gone/plan.yaml"}}, run) == [Source("a training plan (plan.yaml)")]
    assert sources({}, run) == sources(None, run) == sources([1], run) == []
    assert "AutoTokenizer" not in card(told(model=ModelFacts(CONFIG, 5, tokenizer=False)), "me/x")
