"""What was pushed is loaded by somebody who does not have this library: in a process that cannot import it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from morphing_trainer import LoraArguments
from tests.hub.conftest import WRITES
from tests.hub.program import END, INPUT, Run, train
from tests.hub.server import HubServer
from tests.hub.warm import Warm, environment
from tests.trainer.common import entry

STRANGER = """
import json, sys, warnings
for name in ("morphing_trainer", "tests"):
    sys.modules[name] = None  # an import of it fails
warnings.simplefilter("ignore")
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
tokens, found = torch.tensor(json.loads(sys.argv[1])), {}
loaders = {"plain": [AutoModelForCausalLM], "beside": [AutoModelForCausalLM, AutoPeftModelForCausalLM]}
for name, classes in loaders.items():
    for cls in classes:
        model = cls.from_pretrained(f"me/{name}", trust_remote_code=False).eval()
        with torch.no_grad():
            found[f"{name} {cls.__name__}"] = model(tokens).logits.tolist()
        found[f"class {name}"] = type(model).__name__
    found[f"text {name}"] = AutoTokenizer.from_pretrained(f"me/{name}")("w3 w5")["input_ids"]
print(json.dumps(found))
"""


def test_by_a_stranger(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """The same logits: to the bit of the plain model, within rounding of base and adapters."""
    lora = LoraArguments(lora_r=2, lora_target_modules=["c_attn", "c_fc"])
    merges = [{"name": "merge_lora_weights", "max_wait_iters": 3}]
    plain = Run(tmp_path / "plain", [entry("stack_layers", 2, 3)], END)
    beside = Run(tmp_path / "beside", merges, {**END, "save_merged": False}, lora=lora)
    for run in (plain, beside):
        done = warm.run(train, run, HF_TOKEN=WRITES)
        assert done.code == 0, done.said
    expected = {run.folder.name: torch.tensor(run.results()["logits"]) for run in (plain, beside)}
    for run in (plain, beside):
        shutil.rmtree(run.folder)  # what is on the Hub must not lead back here
    env = {name: value for name, value in environment(hub.url, tmp_path / "home").items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(INPUT.tolist())],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["class plain"] == "GPT2LMHeadModel" and found["text plain"] == found["text beside"] == [3, 5]
    assert torch.equal(torch.tensor(found["plain AutoModelForCausalLM"]), expected["plain"])
    for loader in ("AutoModelForCausalLM", "AutoPeftModelForCausalLM"):
        torch.testing.assert_close(torch.tensor(found[f"beside {loader}"]), expected["beside"], rtol=1e-5, atol=1e-6)
