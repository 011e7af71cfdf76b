"""What people copy from: the example schedules load and fit, the example scripts run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import OPERATIONS
from morphing_trainer.planning import play
from morphing_trainer.run.journal import read_journal
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings
from tests.support import tiny_config, tiny_model, trainer

ROOT = Path(__file__).parent.parent
SCHEDULES = sorted(path for path in (ROOT / "configs" / "schedules").iterdir())
LAYERS = {"llama_pro.yaml": 12, "thaw.yaml": 12, "recommended.yaml": 1}
"""Depth of the model that a schedule is written for, where any will not do."""

SETTINGS = Settings(1e-3, batch_size=8, grad_accum=1, warmup_steps=10, eval_iters=20, eval_interval=100)


def spec_for(path: Path) -> ModelSpec:
    return ModelSpec(tiny_config(n_layer=LAYERS.get(path.name, 2)))


# --- Schedules ---


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.name)
def test_a_schedule_loads_and_plays(path: Path) -> None:
    schedule = Schedule.load(path)
    phases = play(schedule, spec_for(path), SETTINGS)
    assert len(phases) == 1 + sum(not entry.completed for entry in (*schedule.entries, *schedule.cycle))
    assert Schedule.of(schedule.to_list()) == schedule
    if path.suffix == ".yaml":
        assert path.read_text().startswith("# ")
    else:
        assert schedule.entries[0].desc


def test_the_schedule_of_all_operations_runs_to_a_plain_model(tmp_path: Path) -> None:
    """As in `make demo`, but on a model that takes seconds."""
    schedule = Schedule.load(ROOT / "configs" / "schedules" / "demo_all_operations.yaml")
    assert {entry.operation.name for entry in schedule.entries} == set(OPERATIONS)
    run = trainer(tmp_path / "run", schedule, tiny_model(n_inner=32), max_steps=15 * len(schedule) + 20, eval_iters=2)
    run.train()
    events = read_journal(tmp_path / "run" / "journal.jsonl")
    assert sum(event["event"] == "operation" for event in events) == len(schedule)
    run.save_whole(tmp_path / "model")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(model) is GPT2LMHeadModel
    assert not any(report.values())
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in run.model.named_parameters()
    }


def test_relora_restarts_to_the_end(tmp_path: Path) -> None:
    model = add_adapters(tiny_model(), LoraArguments(attn_lora_rank_divisor=8))
    schedule = Schedule.load(ROOT / "configs" / "schedules" / "relora.yaml")
    phases = play(schedule, ModelSpec.of(model), SETTINGS, steps=10_900)
    assert [phase.operation for phase in phases if phase.repeats] == ["reset_lr_schedule", "merge_lora_weights"]
    # The file's own waits take thousands of steps.
    short = [{**entry, "max_wait_iters": 2} for entry in schedule.to_list()[-1]["operations"]]
    run = trainer(tmp_path, [{"repeat": "end", "operations": short}], model, warmup_steps=1, max_steps=14)
    run.train()
    events = read_journal(tmp_path / "journal.jsonl")
    steps = [event["step"] for event in events if event["event"] == "operation"]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_the_plain_format_is_there_in_both_languages() -> None:
    assert {path.suffix for path in SCHEDULES} == {".yaml", ".json"}
    pair = [Schedule.load(ROOT / "configs" / "schedules" / name).to_list() for name in ("plain.yaml", "plain.json")]
    for entries in pair:
        entries[0].pop("desc")
    assert pair[0] == pair[1]


def test_llama_pro_trains_the_new_blocks_alone() -> None:
    path = ROOT / "configs" / "schedules" / "llama_pro.yaml"
    entries = Schedule.load(path).to_list()[:2]
    grown, frozen = play(Schedule.of(entries), spec_for(path), SETTINGS)[1:]
    assert grown.layers == 15
    assert frozen.trainable == 3 * sum(p.numel() for p in tiny_model().transformer.h[0].parameters())


def test_ranks_rise_on_demand(tmp_path: Path) -> None:
    """The schedule as it stands; the share is measured at every evaluation, long before the waits are over."""
    schedule = Schedule.load(ROOT / "configs" / "schedules" / "rank_on_demand.yaml")
    run = trainer(tmp_path, schedule, max_steps=60, eval_steps=5, analysis_evals=1, learning_rate=3e-2)
    run.train()
    found = [
        (event["record"]["value"], event["record"]["trigger"])
        for event in read_journal(tmp_path / "journal.jsonl")
        if event["event"] == "operation"
    ]
    assert [value for value, _ in found[:2]] == [4, 8]
    assert "adapters use 0.8" in found[1][1] or "adapters use 0.9" in found[1][1]


def test_the_recommended_schedule_reaches_a_full_model() -> None:
    path = ROOT / "configs" / "schedules" / "recommended.yaml"
    assert [phase.layers for phase in play(Schedule.load(path), spec_for(path), SETTINGS)] == [1, 12]


def test_the_batch_and_the_rate_grow_together() -> None:
    path = ROOT / "configs" / "schedules" / "batch_rampup.yaml"
    last = play(Schedule.load(path), spec_for(path), SETTINGS)[-1].settings
    batch, rate = last.batch_size * last.grad_accum / 8, last.learning_rate / 1e-3
    assert batch == 8
    assert rate == pytest.approx(batch**0.5, rel=1e-3)


# --- Scripts ---


def run(*command: str | Path) -> str:
    """What an example prints, run from the root of the repository as its text says."""
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_minimal_trainer(tmp_path: Path) -> None:
    printed = run("examples/minimal_trainer.py", "--steps", "6", "--output_dir", tmp_path)
    assert "saved a GPT2LMHeadModel: 4 layers, MLP 512 wide" in printed
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (model.config.n_layer, model.config.n_inner) == (4, 512)


def test_lora_ranks(tmp_path: Path) -> None:
    printed = run("examples/lora_ranks.py", "--steps", "6", "--output_dir", tmp_path)
    assert float(printed.rpartition("largest difference between the two: ")[2]) < 1e-5
    base, merged, adapted = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("adapters", "merged", "adapters")
    )
    assert "peft_config" not in vars(merged)
    assert adapted.peft_config["default"].r == 8
    assert {site.rank for site in ModelSpec.of(base).sites.values()} == {8}


def test_own_loop() -> None:
    printed = run("examples/own_loop.py", "--steps", "8")
    assert [line.split(": ")[0] for line in printed.splitlines()] == ["step 2", "step 4", "step 6", "step 8"]
    assert "2 x 256 -> 4 x 256" in printed
    assert "4 x 256 -> 4 x 512" in printed
    assert "'dropped': 5120" in printed


def test_relora(tmp_path: Path) -> None:
    printed = run("examples/relora.py", "--steps", "24", "--merges", "2", "--output_dir", tmp_path).splitlines()[-2:]
    assert [line.partition(":")[0] for line in printed] == ["one adapter", "3 adapters, merged"]
    assert [int(line.rpartition(" ")[2]) for line in printed] == [2, 6]


def test_custom_operation(tmp_path: Path) -> None:
    printed = run("examples/custom_operation.py", "--steps", "9", "--output_dir", tmp_path)
    assert "saved a GPT2LMHeadModel: 4 layers, 218,496 parameters" in printed
    done = [event["record"] for event in read_journal(tmp_path / "journal.jsonl") if event["event"] == "operation"]
    assert [record["operation"] for record in done] == ["change_batch_size", "rate_per_sample", "grow_to_parameters"]
    assert done[1]["after"]["learning_rate"] == pytest.approx(5e-4 * 32**0.5)


def test_the_notebook(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples" / "morphing.ipynb", 4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if cell.source
    )
    assert "GPT2LMHeadModel with 3 blocks, MLPs 512 wide" in printed
    assert float(printed.partition("largest difference between the logits: ")[2].split()[0]) < 1e-5
    assert "parameters with Adam's memory: 40" in printed
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in data for data in shown)


def test_grow_from_checkpoint(tmp_path: Path) -> None:
    model = tiny_model(n_layer=4)
    model.save_pretrained(tmp_path / "small")
    printed = run("examples/grow_from_checkpoint.py", tmp_path / "small", tmp_path / "grown", "--depth", "1.5")
    assert "6 layers" in printed
    grown = AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    assert isinstance(grown, GPT2LMHeadModel)
    assert (grown.config.n_layer, grown.config.n_inner) == (6, 128)
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(grown.eval()(tokens).logits, model.eval()(tokens).logits)


def test_grow_from_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "examples/grow_from_checkpoint.py", str(tmp_path / "none"), str(tmp_path / "grown")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("error: model_name_or_path")
    assert not (tmp_path / "grown").exists()
