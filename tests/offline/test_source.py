"""What a model on disk must be to begin with, and in which forms it may come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from morphing_trainer.checkpoint import write_manifest
from morphing_trainer.errors import CheckpointError, ModelError, MorphError
from morphing_trainer.lora import save_model
from morphing_trainer.models import load_model
from morphing_trainer.offline.source import open_source
from tests.conformance.common import with_history
from tests.offline.common import applied, assert_same_files, grown_live
from tests.support import tiny_model

WIDER = {"name": "widen_mlp", "value": 2}
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "in")
    return tmp_path / "in"


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def test_it_reads_what_loading_reads(folder: Path) -> None:
    source = open_source(str(folder))
    live = dict(load_model(str(folder)).named_parameters())
    assert [*source.tensors] == [*live]
    assert all(torch.equal(source.tensors[name], weight) for name, weight in live.items())


@pytest.mark.parametrize("form", ["several files", "original layout", "a head of its own"])
def test_every_form_of_a_model_gives_the_same(form: str, folder: Path, tmp_path: Path) -> None:
    applied(folder, tmp_path / "plain", WIDER)
    if form == "several files":
        load_model(str(folder)).save_pretrained(tmp_path / "other", max_shard_size="10KB")
        assert len([*(tmp_path / "other").glob("*.safetensors")]) > 2
    else:
        other = tmp_path / "other"
        load_model(str(folder)).save_pretrained(other)
        if form == "original layout":
            masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(2)}
            rewritten(other, lambda found: {k.removeprefix("transformer."): v for k, v in found.items()} | masks)
        else:
            rewritten(other, lambda found: {**found, "lm_head.weight": found["transformer.wte.weight"].clone()})
    applied(tmp_path / "other", tmp_path / "out", WIDER)
    assert_same_files(tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda found: {k: v for k, v in found.items() if "ln_f" not in k}, r"ln_f.weight is missing.*2 in all"),
        (lambda found: {**found, "score.weight": torch.ones(2)}, "score.weight is not part of the model"),
        (
            lambda found: found | {"transformer.ln_f.bias": torch.ones(3)},
            r"ln_f.bias has shape \[3\] instead of \[16\]",
        ),
        (lambda found: found | {"transformer.ln_f.bias": torch.ones(16).char()}, "ln_f.bias is of type I8"),
        (lambda found: found | {"lm_head.weight": torch.ones(32, 16)}, "ties lm_head to wte.*differ"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], match: str, folder: Path
) -> None:
    rewritten(folder, change)
    with pytest.raises(ModelError, match=match):
        open_source(str(folder))


def _cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


def _another_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))


def _flipped(folder: Path) -> None:
    write_manifest(folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _unlisted(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    write_manifest(folder)
    (folder / WEIGHTS).write_bytes(content)


def _away(folder: Path) -> None:
    index = {"weight_map": {"a": "../in/model.safetensors"}}
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_cut_short, r"model.safetensors: cannot be read"),
        (_another_model, "model_type 'llama'"),
        (_flipped, "model.safetensors: its content was changed"),
        (_unlisted, "does not list 'model.safetensors'"),
        (_away, "names no file beside it"),
        (lambda folder: (folder / WEIGHTS).unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_a_damaged_model_is_refused(damage: Callable[[Path], None], match: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(MorphError, match=match):
        open_source(str(folder))


def test_one_that_was_written_here_can_be_the_next_to_begin_with(folder: Path, tmp_path: Path) -> None:
    applied(folder, tmp_path / "wide", WIDER)
    assert (tmp_path / "wide/manifest.json").is_file()
    done = applied(tmp_path / "wide", tmp_path / "wider", WIDER, check=True)
    assert done.check is not None and done.check.same


def test_adapters_of_a_shared_weight_must_agree(tmp_path: Path) -> None:
    model, _ = with_history((), dtype=torch.float32, steps=0, lora="lora")
    save_model(model, tmp_path / "in", merge=False)
    path = tmp_path / "in/adapter_model.safetensors"
    found = load_file(path)
    found["base_model.model.lm_head.lora_A.weight"] += 1
    save_file(found, path, {"format": "pt"})
    with pytest.raises(MorphError, match="transposed, though the model shares the weight"):
        open_source(str(tmp_path / "in"))


def test_adapters_of_a_narrow_type_are_read_as_loading_reads_them(tmp_path: Path) -> None:
    model, _ = with_history((), dtype=torch.float32, steps=0, lora="lora")
    save_model(model, tmp_path / "in", merge=False)
    path = tmp_path / "in/adapter_model.safetensors"
    save_file({name: each.bfloat16() for name, each in load_file(path).items()}, path, {"format": "pt"})
    applied(tmp_path / "in", tmp_path / "out", WIDER)
    grown_live(tmp_path / "in", tmp_path / "live", WIDER)
    assert_same_files(tmp_path / "out", tmp_path / "live")


def test_a_folder_of_nothing_has_no_optimizer(folder: Path) -> None:
    with pytest.raises(ModelError, match="is no checkpoint of a run"):
        open_source(str(folder), optimizer=True)


def test_a_run_whose_checkpoints_are_damaged_is_told(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "morph_state.json").write_text("{}")
    for optimizer in (True, False):
        with pytest.raises(CheckpointError, match="damaged"):
            open_source(str(tmp_path / "run"), optimizer=optimizer)
