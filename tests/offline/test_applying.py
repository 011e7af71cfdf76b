"""Operations on models on disk give, to the bit, what they give on live models."""

from __future__ import annotations

import errno
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from morphing_trainer import morph
from morphing_trainer.errors import ModelError, OperationError, StorageError
from morphing_trainer.functional import parsed
from morphing_trainer.lora import load_adapters, save_model
from morphing_trainer.models import load_model
from morphing_trainer.offline.applying import apply
from morphing_trainer.offline.descendants import Descendants, Tensors
from morphing_trainer.offline.source import open_source
from morphing_trainer.operations import Morph
from morphing_trainer.operations.depth import StackLayers
from morphing_trainer.operations.width import WidenMlp
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import logits, with_history
from tests.offline.common import applied, assert_same_files, contents, grown_live
from tests.support import tiny_model

DEEPER: dict[str, Any] = {"name": "stack_layers", "value": 2, "init": "identity"}
WIDER: dict[str, Any] = {"name": "widen_mlp", "value": 2}


def saved(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = True, lora: str = "") -> Path:
    model, _ = with_history((), dtype=dtype, tied=tied, steps=0, lora=lora)
    save_model(model, folder, merge=False)
    return folder


@pytest.mark.parametrize(
    ("dtype", "tied"),
    [
        pytest.param(torch.float32, True, id="float32"),
        pytest.param(torch.bfloat16, False, id="bfloat16-untied"),
        pytest.param(torch.float32, False, id="float32-untied", marks=pytest.mark.long),
        pytest.param(torch.float16, True, id="float16", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("case", ARCHITECTURE, ids=lambda case: case.id)
def test_a_file_becomes_what_a_live_model_becomes(case: Case, dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "in", dtype, tied, case.lora)
    done = applied(folder, tmp_path / "out", case.written, seed=5)
    grown_live(folder, tmp_path / "live", case.written, seed=5)
    assert_same_files(tmp_path / "out", tmp_path / "live")
    assert done.preserving == case.preserving


CHAINS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "shapes": ("", [WIDER, {"name": "stack_layers", "value": [1, 0, 1]}, {**WIDER, "split": "newborn"}, DEEPER]),
    "adapters come and go": (
        "",
        [
            {"name": "set_attn_lora_rank", "value": 4},
            {"name": "set_embedding_lora_rank", "value": 3},
            DEEPER,
            {"name": "merge_lora_weights"},
            {"name": "set_attn_lora_rank", "value": 0},
        ],
    ),
    "ranks": ("rslora", [{"name": "set_attn_lora_rank", "value": rank} for rank in (6, 5, 4, 3, 2, 1, 3, 2)]),
    "all": (
        "lora",
        [WIDER, {"name": "set_layer_lora_rank", "value": ["mlp.*", 1]}, DEEPER, {"name": "merge_lora_weights"}],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chain", CHAINS)
def test_several_operations_are_done_one_after_the_other(chain: str, dtype: torch.dtype, tmp_path: Path) -> None:
    lora, operations = CHAINS[chain]
    folder = saved(tmp_path / "in", dtype, lora=lora)
    applied(folder, tmp_path / "out", *operations, seed=3)
    grown_live(folder, tmp_path / "live", *operations, seed=3)
    assert_same_files(tmp_path / "out", tmp_path / "live")


def test_the_first_operation_draws_as_morph_does(tmp_path: Path) -> None:
    folder = saved(tmp_path / "in")
    applied(folder, tmp_path / "out", WIDER, seed=7)
    save_model(morph(load_model(str(folder)), WIDER, seed=7).model, tmp_path / "live")
    assert_same_files(tmp_path / "out", tmp_path / "live")


def test_anybody_can_load_it(tmp_path: Path) -> None:
    folder = saved(tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.25, "our_own": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 7}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("of nobody's interest")
    applied(folder, tmp_path / "out", DEEPER)
    load: Any = GPT2LMHeadModel.from_pretrained
    model, report = load(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert (model.config.n_layer, model.config.resid_pdrop, model.config.our_own) == (4, 0.25, 3)
    assert model.generation_config.max_length == 7
    live = grown_live(folder, tmp_path / "live", DEEPER)
    assert torch.equal(logits(model.eval()), logits(live))
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "live"))
    assert ours == theirs
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors", "manifest.json"}


def test_adapters_lie_beside_their_base_as_peft_saves_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "in", tied=False, lora="lora")
    operation = {"name": "set_attn_lora_rank", "value": 2}
    applied(folder, tmp_path / "out", operation)
    live = grown_live(folder, tmp_path / "live", operation)
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("out", "live"))
    assert ours.pop("base_model_name_or_path") == str(tmp_path / "out")
    theirs.pop("base_model_name_or_path")
    assert ours == theirs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of mixed layouts
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), logits(live))
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_bytes((tmp_path / "out" / name).read_bytes())
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(load_adapters(base.eval(), tmp_path / "out")), logits(live))


def test_merged_it_is_plain(tmp_path: Path) -> None:
    folder = saved(tmp_path / "in", lora="rslora")
    done = applied(folder, tmp_path / "out", WIDER, merge=True, check=True)
    assert done.check is not None and done.check.same
    assert not list((tmp_path / "out").glob("adapter*"))
    live = grown_live(folder, tmp_path / "live", WIDER)
    save_model(live, tmp_path / "merged")
    assert_same_files(tmp_path / "out", tmp_path / "merged")
    assert [step.operation.name for step in done.steps] == ["widen_mlp", "merge_lora_weights"]


def test_a_long_chain_of_ranks_computes_each_matrix_a_few_times(tmp_path: Path) -> None:
    """Each matrix descends from both of the one before, which would be 3^20 without remembering any."""
    folder = saved(tmp_path / "in")
    ranks = [{"name": "set_layer_lora_rank", "value": ["attn.0", rank]} for rank in range(16, 1, -1)]
    applied(folder, tmp_path / "out", *ranks)
    assert contents(tmp_path / "out")["adapter_model.safetensors"]


# --- The check ---


class Lying(StackLayers):
    """Says that copies keep the function."""

    def morph(self, spec: Any, rng: torch.Generator) -> Morph:
        return replace(super().morph(spec, rng), preserving=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_keeps_the_function_passes_the_check_and_what_does_not_is_refused(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "in", dtype, lora="lora")
    operations: list[dict[str, Any]] = [
        WIDER,
        DEEPER,
        {"name": "set_attn_lora_rank", "value": 1},
        {"name": "merge_lora_weights"},
    ]
    done = applied(folder, tmp_path / "out", *operations, check=True)
    assert done.check is not None and done.check.difference < done.check.tolerance / 3
    lie = [Lying(value=2)]
    with pytest.raises(ModelError, match=r"the function should have stayed.*--no_check"):
        apply(open_source(str(folder)), lie, tmp_path / "lie")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in", "out"]
    apply(open_source(str(folder)), lie, tmp_path / "lie", check=False)
    assert (tmp_path / "lie").is_dir()


def test_an_operation_that_changes_the_function_says_what_that_did(tmp_path: Path) -> None:
    folder = saved(tmp_path / "in")
    check = applied(folder, tmp_path / "out", {"name": "stack_layers", "value": 2}, check=True).check
    assert check is not None and not check.same and check.before != check.after


def test_a_dead_model_is_told(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("transformer.ln_f.weight")[0] = float("nan")
    model.save_pretrained(tmp_path / "in")
    with pytest.raises(ModelError, match="NaN or infinity"):
        applied(tmp_path / "in", tmp_path / "out", WIDER, check=True)
    assert not (tmp_path / "out").exists()


# --- What goes wrong ---


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ({"name": "change_lr", "value": 2}, "change_lr: changes how a model is trained"),
        ({"name": "stack_layers", "value": 1.3}, r"operation 2 \(stack_layers\): 2 layers times 1.3"),
        ({"name": "decrease_attn_lora_scaling", "value": 2}, "has no adapter on its attention"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    written: dict[str, Any], match: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "in")
    with pytest.raises(OperationError, match=match):
        applied(folder, tmp_path / "out", WIDER, written)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


class Full(Tensors):
    """Tensors of which the third cannot be had."""

    def __init__(self, old: Tensors, error: BaseException) -> None:
        super().__init__(old.shapes)
        self._old, self._error, self._count = old, error, 0

    def __getitem__(self, name: str) -> torch.Tensor:
        self._count += 1
        if self._count == 3:
            raise self._error
        return self._old[name]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (MemoryError("of ours"), MemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_nothing_is_left_of_what_failed(error: BaseException, seen: type[BaseException], tmp_path: Path) -> None:
    folder = saved(tmp_path / "in")
    source = open_source(str(folder))
    broken = replace(source, tensors=Full(source.tensors, error))
    with pytest.raises(seen):
        apply(broken, [parsed(WIDER)], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_only_what_is_asked_for_is_computed(tmp_path: Path) -> None:
    source = open_source(str(saved(tmp_path / "in")))
    plan = WidenMlp(value=2).morph(source.spec, torch.Generator().manual_seed(0))
    tensors = Descendants(plan.lineage, plan.spec, source.tensors)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert tensors[name] is not tensors[name]
    assert len(tensors) == len(plan.spec.shapes) and tensors.shapes[name] == (torch.float32, (16, 128))
