"""The shipped launch configurations start what they say."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from morphing_trainer import MorphingConfig
from morphing_trainer.checkpoint.trainer_files import TRAINER_STATE
from morphing_trainer.errors import ConfigError
from morphing_trainer.run.launching import check_launched
from tests.support import same, tiny_model, trainer

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
LEAVING = ROOT / "tests" / "leaving.py"
SMALL = ["--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--vocab_size", "300", "--block_size", "16"]


def launched(folder: Path, *launcher: str, script: Path = ROOT / "train.py") -> Path:
    """The checkpoint of a short run of the real script, launched like this."""
    options = ["--output_dir", str(folder), "--use_cpu", "--max_steps", "2", "--save_steps", "2"]
    options += ["--logging_steps", "1", *SMALL]
    command = [str(Path(sys.executable).parent / launcher[0]), *launcher[1:], str(script), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "checkpoint-2"


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def by_accelerate(folder: Path, name: str) -> Path:
    config = str(ROOT / "accelerate_configs" / f"{name}.yaml")
    return launched(folder, "accelerate", "launch", "--quiet", "--config_file", config, "--main_process_port", port())


def processes(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "morph_state.json").read_text())["arguments"]["world_size"])


@pytest.mark.long  # the demo's test starts with single.yaml, too
@pytest.mark.parametrize("name", ["single", "cpu"])
def test_starts_one_process(tmp_path: Path, name: str) -> None:
    assert processes(by_accelerate(tmp_path / "run", name)) == 1


def test_torchrun_is_as_good_as_accelerate(tmp_path: Path) -> None:
    """Two processes each, and the same weights and losses. No process group outlives the run."""
    ours = by_accelerate(tmp_path / "a", "ddp_cpu")
    theirs = launched(tmp_path / "b", "torchrun", "--nproc_per_node", "2", "--master_port", port(), script=LEAVING)
    assert processes(ours) == processes(theirs) == 2
    left, right = (load_file(checkpoint / "model.safetensors") for checkpoint in (ours, theirs))
    assert same(left, right)
    histories = [json.loads((each / TRAINER_STATE).read_text())["log_history"] for each in (ours, theirs)]
    losses = [[line["loss"] for line in history if "loss" in line] for history in histories]
    assert losses[0] == losses[1]
    assert losses[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_says_when_and_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    comments = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    commands = [line for line in comments if line.startswith(("accelerate ", "torchrun "))]
    assert comments[0] not in commands, "it says first when to use it"
    assert f"accelerate launch --config_file accelerate_configs/{path.name} " in commands[0]
    for command in commands:
        named = re.findall(r"[\w/]+\.(?:yaml|py)\b", command)
        assert "train.py" in named
        assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_understands_it(path: Path) -> None:
    """Its own loader refuses keys that it does not know."""
    config: Any = load_config_from_file(str(path))
    several = config.num_machines > 1 or config.distributed_type.value in ("MULTI_GPU", "FSDP")
    assert (config.num_processes > 1) == several
    if config.distributed_type.value == "FSDP":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_offload_params"] == ("offload" in path.stem)
        known = {name for name in _launch_options() if name.startswith("fsdp_")}
        assert config.fsdp_config.keys() <= known


def _launch_options() -> list[str]:
    from accelerate.commands.launch import launch_command_parser

    return [action.dest for action in launch_command_parser()._actions]


def test_there_is_one_for_every_way() -> None:
    assert {path.stem for path in CONFIGS} == {
        "single", "cpu", "ddp", "ddp_cpu", "ddp_machines", "fsdp2", "fsdp2_offload"
    }  # fmt: skip


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["x.json", {"zero_optimization": {"stage": 3}}])
def test_deepspeed_is_refused(tmp_path: Path, value: Any) -> None:
    """It is not installed here: what names the way must not come behind an error that it is missing."""
    with pytest.raises(ConfigError, match=r"deepspeed: DeepSpeed is not supported.*accelerate_configs/fsdp2.yaml"):
        MorphingConfig(str(tmp_path), deepspeed=value)


def test_deepspeed_of_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"distributed_type DEEPSPEED: .*fsdp2.yaml"):
        MorphingConfig(str(tmp_path))


def test_the_first_fsdp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set fsdp_version: 2"):
        MorphingConfig(str(tmp_path), fsdp="full_shard", fsdp_config={"version": 1})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match="set fsdp_version: 2"):
        MorphingConfig(str(tmp_path))


def test_the_second_is_not(tmp_path: Path) -> None:
    check_launched(None, True, {"version": 2}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="one process"):
        check_launched(None, True, {"version": 2}, {})
    check_launched(None, None, {"version": 1}, {"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"})


def test_fsdp_that_is_not_turned_on_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate shards on accelerators only; on a CPU the run would go on with DDP, or alone, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ConfigError, match=r"FSDP: was asked for, but .* accelerate_configs/ddp_cpu.yaml"):
        trainer(tmp_path / "run", [], tiny_model(), use_cpu=True)
