"""`make demo`, run as a person runs it: real launcher, real process, real text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STOCK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("morphing_trainer") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer("The import statement", return_tensors="pt")
loss = float(model(**inputs, labels=inputs["input_ids"]).loss)
text = tokenizer.decode(model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)[0])
print(json.dumps({"type": type(model).__name__, "loss": loss, "text": text, "layers": model.config.n_layer,
                  "inner": model.config.n_inner, "vocab": model.config.vocab_size, "tokens": len(tokenizer)}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and output."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file"]
    command += ["accelerate_configs/single.yaml", "train.py", "--config", "configs/demo.yaml"]
    done = subprocess.run(
        [*command, "--output_dir", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_every_operation_is_applied_and_both_kinds_of_trigger_fire(run: tuple[Path, str]) -> None:
    records = [event["record"] for event in events(run[0]) if event["event"] == "operation"]
    assert [record["operation"] for record in records] == [
        "change_lr",
        "stack_layers",
        "widen_mlp",
        "freeze_layer",
        "unfreeze_layer",
        "change_batch_size",
        "reset_lr_schedule",
    ]
    triggers = [record["trigger"] for record in records]
    assert any(trigger.startswith("loss") for trigger in triggers)
    assert any(trigger.startswith("waited") for trigger in triggers)
    widened = records[2]
    assert widened["moments"]["scaled"] > 0
    assert widened["moments"]["newborn"] == 0
    assert widened["after"]["loss"] == pytest.approx(widened["before"]["loss"], abs=1e-4)


def test_the_model_is_plain_gpt2(run: tuple[Path, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(run[0] / "model")],
        cwd=run[0],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["type"] == "GPT2LMHeadModel"
    assert (found["layers"], found["inner"]) == (4, 512)
    assert found["tokens"] == found["vocab"]
    assert found["loss"] < 7
    assert found["text"].startswith("The import statement")


def test_it_leaves_log_picture_and_checkpoints(run: tuple[Path, str]) -> None:
    folder, output = run
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    log = (folder / "logs" / "train.log").read_text()
    for text in (output, log):
        assert "\x1b" not in text
        assert "widen_mlp 2" in text
        assert "7 operations applied" in text
    assert len(list(folder.glob("checkpoint-*"))) >= 2
    assert [event["event"] for event in events(folder)][-1] == "end"


def test_losses_fall(run: tuple[Path, str]) -> None:
    state = json.loads(sorted(run[0].glob("checkpoint-*"))[-1].joinpath("trainer_state.json").read_text())
    found = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert found[-1] < found[0] - 1
