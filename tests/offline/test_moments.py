"""The optimizer of a checkpoint moves as that of a live model does, and loads as --help says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import AdamW, Optimizer

from morphing_trainer import morph
from morphing_trainer.cli import apply as command
from morphing_trainer.engine import optimizer_names
from morphing_trainer.errors import CheckpointError
from morphing_trainer.functional import parsed
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.offline.applying import apply
from morphing_trainer.offline.source import open_source
from morphing_trainer.run.bundle import load_model, read_bundle
from tests.support import tiny_model, trainer
from tests.trainer.common import entry

WIDER = {"name": "widen_mlp", "value": 2}

OPERATIONS: list[dict[str, Any]] = [
    WIDER,
    {"name": "stack_layers", "value": 2},
    {"name": "stack_layers", "value": 2, "init": "identity"},
    {"name": "set_attn_lora_rank", "value": 1},
    {"name": "set_attn_lora_rank", "value": 8},
    {"name": "merge_lora_weights", "restart": False},
    {"name": "freeze_layer", "value": "attn.*"},
    {"name": "unfreeze_layer", "value": "*"},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with adapters and a frozen part."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    schedule = [entry("set_attn_lora_rank", 4, 1), entry("freeze_layer", "mlp.1", 1)]
    trainer(folder, schedule, max_steps=5, save_strategy="steps", save_steps=5).train()
    return folder


def live(checkpoint: Path) -> tuple[Any, Optimizer]:
    """The model and optimizer of a checkpoint."""
    bundle = read_bundle(checkpoint)
    spec = ModelSpec.from_dict(bundle.state["spec"])
    model = load_model(checkpoint, spec, tiny_model(), torch.device("cpu"))
    named = dict(model.named_parameters())
    optimizer = AdamW([{"params": [named[name] for name in group]} for group in bundle.optimizer_names])
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    return model, optimizer


def by_name(names: list[list[str]], saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    flat = [name for group in names for name in group]
    return {flat[number]: state for number, state in saved["state"].items()}


@pytest.mark.parametrize("written", OPERATIONS, ids=lambda written: f"{written['name']}-{written.get('value')}")
def test_it_is_what_morph_makes_of_it(written: dict[str, Any], run: Path, tmp_path: Path) -> None:
    source = open_source(str(run), optimizer=True)
    done = apply(source, [parsed(written)], tmp_path / "out", seed=4, optimizer=True)
    model, optimizer = live(run / "checkpoint-5")
    grown = morph(model, written, optimizer, seed=4)
    assert grown.optimizer is not None
    theirs, names = grown.optimizer.state_dict(), optimizer_names(grown.model, grown.optimizer)
    ours = torch.load(tmp_path / "out/optimizer.pt", weights_only=True)
    assert [group["param_names"] for group in ours["param_groups"]] == names
    for group, other in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert {key: value for key, value in group.items() if key != "param_names"} == other
    left, right = by_name(names, ours), by_name(names, theirs)
    assert left.keys() == right.keys()
    for name, state in left.items():
        assert state.keys() == right[name].keys()
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(right[name][key])), (name, key)
    assert done.steps[0].census is not None
    assert {**grown.record.moments} == {**done.to_dict()["operations"][0]["moments"]}


def test_it_loads_as_the_help_says(run: Path, tmp_path: Path) -> None:
    source = open_source(str(run), optimizer=True)
    apply(source, [parsed(WIDER), parsed({"name": "stack_layers", "value": 2})], tmp_path / "out", optimizer=True)
    (recipe,) = re.findall(r"(    import torch\n.*?load_state_dict\(saved\)\n)", command._EPILOG, re.DOTALL)
    known: dict[str, Any] = {}
    exec(re.sub("(?m)^    ", "", recipe).replace("MODEL_OUT", str(tmp_path / "out")), known)
    optimizer, model = known["optimizer"], known["model"]
    loss = model(input_ids=torch.arange(16)[None], labels=torch.arange(16)[None]).loss
    loss.backward()
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {
        5.0 + 1,
        4.0 + 1,
    }  # the adapters are a step younger


def test_moments_in_parts_are_refused(run: Path, tmp_path: Path) -> None:
    source = open_source(str(run), optimizer=True)
    assert source.bundle is not None
    saved = torch.load(run / "checkpoint-5/optimizer.pt", weights_only=True)
    torch.save({**saved, "sharded": {}}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="each kept a part"):
        apply(
            replace(source, bundle=replace(source.bundle, path=tmp_path)),
            [parsed(WIDER)],
            tmp_path / "out",
            optimizer=True,
        )
    assert not (tmp_path / "out").exists()


def test_moments_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    source = open_source(str(run), optimizer=True)
    assert source.bundle is not None
    saved = torch.load(run / "checkpoint-5/optimizer.pt", weights_only=True)
    saved["state"][0]["exp_avg"] = torch.ones(2, 2)
    torch.save(saved, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        apply(
            replace(source, bundle=replace(source.bundle, path=tmp_path)),
            [parsed(WIDER)],
            tmp_path / "out",
            optimizer=True,
        )
