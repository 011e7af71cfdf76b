"""`morph apply`: what a person types, and what is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from transformers import GPT2LMHeadModel

from morphing_trainer.cli import apply
from morphing_trainer.cli.apply import main, read_operation
from morphing_trainer.cli.morph import main as morph
from morphing_trainer.documents import dump_yaml
from morphing_trainer.errors import MorphError
from morphing_trainer.lora import save_model
from morphing_trainer.reporting.applied import applied_lines, applied_view
from morphing_trainer.reporting.console import make_console
from tests.support import tiny_model, trainer
from tests.test_models import Hub
from tests.trainer.common import entry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "in")
    return tmp_path / "in"


def asked(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main([*map(str, argv), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("widen_mlp=2", {"name": "widen_mlp", "value": 2.0}),
        (" widen_mlp = 1.5 ", {"name": "widen_mlp", "value": 1.5}),
        ("increase_hidden_dim=2", {"name": "widen_mlp", "value": 2.0}),
        ("stack_layers=[0, 0, 1]", {"name": "stack_layers", "value": [0, 0, 1]}),
        ("set_layer_lora_rank=[attn.2, 16]", {"name": "set_layer_lora_rank", "value": ["attn.2", 16]}),
        ("freeze_layer=wte", {"name": "freeze_layer", "value": "wte"}),
        ("merge_lora_weights", {"name": "merge_lora_weights", "value": None}),
        (
            "{name: stack_layers, value: 2, init: identity}",
            {"name": "stack_layers", "value": 2.0, "init": "identity"},
        ),
        ('{"name": "widen_mlp", "value": 2, "split": "even"}', {"name": "widen_mlp", "value": 2.0, "split": "even"}),
    ],
)
def test_an_operation_is_written_in_several_ways(text: str, written: dict[str, Any]) -> None:
    assert read_operation(text).to_dict() == written


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("widn_mlp=2", "unknown operation 'widn_mlp'; did you mean 'widen_mlp'"),
        ("widen_mlp", "value"),
        ("widen_mlp=", "write name=value"),
        ("=2", "write name=value"),
        ("", "write name=value"),
        ("widen_mlp=[1", "write name=value"),
        ("widen_mlp=two", "value"),
        ("{name: widen_mlp, value: 2", "write name=value"),
        ("{name: widen_mlp, value: 2, value: 3}", "value"),
        ("{name: widen_mlp, value: 2, trigger_loss: 3}", "trigger_loss belongs in a schedule"),
        ("{value: 2}", "name"),
    ],
)
def test_a_slip_of_the_pen_is_told(text: str, match: str) -> None:
    with pytest.raises(MorphError, match=match):
        read_operation(text)


def test_operations_and_options_may_be_mixed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, folder, "widen_mlp=2", "--out", tmp_path / "out", "stack_layers=2", "--seed", "3")
    assert [operation["name"] for operation in found["operations"]] == ["widen_mlp", "stack_layers"]
    assert (found["operations"][1]["after"]["layers"], found["preserving"]) == (4, False)
    assert found["check"]["after"] != found["check"]["before"]
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "out").config.n_inner == 128


def test_a_table_tells_what_was_done(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = "{name: stack_layers, value: 2, init: identity}"
    assert morph(["apply", str(folder), "widen_mlp=2", identity, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "parameters" in lines[0] and "optimizer" not in lines[0] and "adapters" not in lines[0]
    assert [line.split("  ")[0] for line in lines[1:4]] == ["before", "widen_mlp 2", "stack_layers 2, init: identity"]
    assert "4 x 16, mlp 128" in lines[3] and "28 kept, 16 copied, 8 new" in lines[3] and "stays" in lines[3]
    assert any(line.startswith("function: the same on random tokens") for line in lines)
    assert lines[-1].startswith(f"written: {tmp_path / 'out'} (89.5kB")


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_table_fits_the_terminal(
    width: int, folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found = asked(capsys, folder, "set_attn_lora_rank=4", "--out", tmp_path / "out")
    console = make_console()
    with console.capture() as shown:
        console.print(applied_view(found))
    lines = shown.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "set_attn_lora_rank" in shown.get() and "Operations" in lines[0]
    assert ("28 kept, 8 new" in shown.get()) == (width == 160)
    assert len(applied_lines(found)) == 7 and "rank 4 on 4" in applied_lines(found)[2]


def test_the_operations_of_a_schedule_are_done_whatever_their_triggers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = tmp_path / "schedule.yaml"
    entries = [
        entry("stack_layers", 2, 5, completed=True),
        entry("widen_mlp", 2, 10),
        {"repeat": 2, "operations": [entry("set_mlp_width", 200, trigger_loss=1.0, max_wait_iters=9)]},
    ]
    schedule.write_text(dump_yaml(entries))
    found = asked(capsys, folder, "--schedule", schedule, "--out", tmp_path / "out", "--no_check")
    assert [operation["name"] for operation in found["operations"]] == ["widen_mlp", "set_mlp_width", "set_mlp_width"]
    assert found["check"] is None


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (
            [entry("widen_mlp", 2, 5), entry("change_lr", 2, 5)],
            r"schedule.yaml:4: entry 2 \(change_lr\): changes how a model is trained.*one by one",
        ),
        ([entry("widen_mlp", 2, 5, completed=True)], "no operation that is still to be done"),
        ([{"repeat": "end", "operations": [entry("widen_mlp", 2, 5)]}], "for as long as a run lasts"),
        ([entry("widn_mlp", 2, 5)], "did you mean 'widen_mlp'"),
    ],
)
def test_a_schedule_that_cannot_be_applied_is_refused(entries: Any, match: str, folder: Path, tmp_path: Path) -> None:
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(dump_yaml(entries))
    with pytest.raises(MorphError, match=match):
        main([str(folder), "--schedule", str(schedule), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["in", "--out", "out"], "give operations"),
        (["in", "widen_mlp=2", "--schedule", "x.yaml", "--out", "out"], "give operations"),
        (["in", "widen_mlp=2", "--out", "in", "--overwrite"], "is where the model comes from"),
        (["in", "change_lr=2", "--out", "out"], "into the schedule of a run"),
        (["in", "widen_mlp=1.3", "--out", "out"], "use set_mlp_width 83"),
        (["inn", "widen_mlp=2", "--out", "out"], "did you mean 'in'"),
        (["in", "widen_mlp=2", "--optimizer", "--out", "out"], "leave --optimizer out"),
        (["in", "widen_mlp=2", "--revision", "main", "--out", "out"], "revision"),
    ],
)
def test_bad_input_is_told_in_a_line(
    argv: list[str], match: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    assert morph(["apply", *argv]) == 2
    told = capsys.readouterr().err
    assert match in told and told.startswith("error: ") and told.count("\n") == 1
    assert [path.name for path in folder.parent.iterdir()] == ["in"]


def test_a_run_and_its_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    made = trainer(run, [entry("widen_mlp", 2, 1)], max_steps=4, save_strategy="steps", save_steps=2)
    made.train()
    made.save_whole(run / "model")
    capsys.readouterr()
    plain = asked(capsys, run, "stack_layers=2", "--out", tmp_path / "plain")
    assert plain["source"] == str(run / "model") and plain["operations"][0]["moments"] is None
    found = asked(capsys, run, "stack_layers=2", "--optimizer", "--out", tmp_path / "out")
    assert found["source"] == str(run / "checkpoint-4")
    moments = found["operations"][0]["moments"]
    assert moments["carried"] == found["operations"][0]["after"]["parameters"]
    assert (tmp_path / "out/optimizer.pt").is_file() and not (tmp_path / "plain/optimizer.pt").exists()
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    assert "carried" in "\n".join(applied_lines(found))
    (told,) = re.findall(r"\n( +import torch.*?)\n\n", apply._EPILOG, re.DOTALL)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(told).replace("MODEL_OUT", str(tmp_path / "out")), names)
    assert len(names["optimizer"].state_dict()["state"]) == len(list(names["model"].parameters()))


def test_a_model_of_the_hub(folder: Path, tmp_path: Path) -> None:
    """Downloaded by the real client, in the original layout, with its tokenizer."""
    load_file, save_file = safetensors.torch.load_file, safetensors.torch.save_file
    shutil.copytree(folder, tmp_path / "served")
    path = tmp_path / "served/model.safetensors"
    original = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(original, path, {"format": "pt"})
    (tmp_path / "served/vocab.json").write_text("{}")
    (tmp_path / "served/training.bin").write_text("not ours to download")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    with Hub({"someone/gpt2": tmp_path / "served"}) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        env = {**kept, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "morphing_trainer.cli.morph", "apply", "someone/gpt2", "widen_mlp=2"]
        done = subprocess.run([*command, "--out", "out"], cwd=tmp_path, env=env, capture_output=True, text=True)
        hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert "function: the same on random tokens" in done.stdout
    assert (tmp_path / "out/vocab.json").is_file() and not any("training.bin" in each for each in hub.requests)
    main([str(folder), "widen_mlp=2", "--out", str(tmp_path / "local"), "--no_check"])
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "local/model.safetensors").read_bytes()


def test_help_is_quick_and_needs_no_torch() -> None:
    program = "import sys; from morphing_trainer.cli.morph import main\ntry: main(['apply', '--help'])\nexcept SystemExit: pass\nprint('torch' in sys.modules)"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ}, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("False\n") and "exit codes" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
