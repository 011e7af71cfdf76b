"""The shipped launch configurations start what they say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMALL = ["--n_layer", "1", "--n_embd", "16", "--n_head", "2", "--vocab_size", "300", "--block_size", "16"]


@pytest.mark.parametrize(("name", "processes"), [("single", 1), ("ddp_cpu", 2)])
def test_starts_so_many_processes(tmp_path: Path, name: str, processes: int) -> None:
    config = ROOT / "accelerate_configs" / f"{name}.yaml"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet", "--config_file", str(config)]
    command += ["--main_process_port", port]
    options = ["--output_dir", str(tmp_path / "run"), "--use_cpu", "--max_steps", "2", "--save_steps", "2", *SMALL]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "train.py"), *options], capture_output=True, text=True, timeout=200, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    saved = json.loads((tmp_path / "run" / "checkpoint-2" / "morph_state.json").read_text())
    assert saved["arguments"]["world_size"] == processes


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_says_when_and_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    assert f"accelerate launch --config_file accelerate_configs/{path.name} train.py" in text
    assert yaml.safe_load(text)["num_processes"] >= 1
