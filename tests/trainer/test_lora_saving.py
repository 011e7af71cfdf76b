"""What runs with LoRA leave on disk, and what is resumed from it."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.checkpoint.manifest import write_manifest
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.consensus import Consensus
from tests.support import Tokens, same, stirred, tiny_model, trainer, weights
from tests.trainer.common import applied, entry

TOKENS = Tokens(3, seed=9).tokens
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors")
PLAIN = {"config.json", "generation_config.json", "model.safetensors", "training_args.bin"}
SCHEDULE = [
    entry("set_layer_lora_rank", ["attn.1", 6], 2, alpha=5),
    entry("merge_lora_weights", None, 2),
    entry("stack_layers", 2, 2),
    entry("set_embedding_lora_rank", 1, 2),
]
SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 100, "eval_strategy": "no", "max_steps": 9}
START: dict[str, Any] = {"lora_r": 4, "lora_target_modules": ["c_attn", "wte"], "lora_dropout": 0.1}


def adapted(**arguments: Any) -> GPT2LMHeadModel:
    made = stirred(add_adapters(tiny_model(), LoraArguments(**{**START, **arguments}), 0))
    assert isinstance(made, GPT2LMHeadModel)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = copy.deepcopy(model).eval()(TOKENS).logits
    return found


def read(folder: Path, kind: Any = AutoModelForCausalLM) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, of tied layers
        return kind.from_pretrained(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    """A finished run of 9 steps with a checkpoint at each."""
    run = trainer(tmp_path_factory.mktemp("whole") / "run", SCHEDULE, adapted(), **SAVING)
    run.train()
    return run


def resumed(whole: MorphingTrainer, folder: Path, step: int, model: Any = None, **changes: Any) -> MorphingTrainer:
    run = trainer(folder, SCHEDULE, model or adapted(), **{**SAVING, "save_strategy": "no", **changes})
    run.train(str(whole.run_folder / f"checkpoint-{step}"))
    return run


# ---- Checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_base_and_adapters(whole: MorphingTrainer) -> None:
    last = whole.run_folder / "checkpoint-9"
    want = logits(whole.model)
    for kind in (AutoModelForCausalLM, GPT2LMHeadModel, AutoPeftModelForCausalLM):
        torch.testing.assert_close(logits(read(last, kind)), want, rtol=0, atol=1e-5)
    assert whole.run_folder.samefile(
        Path(json.loads((last / ADAPTERS[0]).read_text())["base_model_name_or_path"]).parent
    )
    base = [load_file(whole.run_folder / f"checkpoint-{step}" / "model.safetensors") for step in (4, 5)]
    host = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(base[0][host], base[1][host]), "a merge changes the base"
    assert base[0].keys() == dict(tiny_model().named_parameters()).keys()


def test_every_checkpoint_resumes(whole: MorphingTrainer, tmp_path: Path) -> None:
    for step in (1, 2, 4, 6, 8):
        run = resumed(whole, tmp_path / str(step), step)
        assert same(weights(run), weights(whole))
        assert applied(run) == applied(whole)


def test_a_checkpoint_starts_another_run(whole: MorphingTrainer, tmp_path: Path) -> None:
    """As a model, adapters included."""
    from morphing_trainer.models import load_model

    model = load_model(str(whole.run_folder / "checkpoint-3"))
    assert dict(ModelSpec.of(model).sites)["transformer.h.1.attn.c_attn"] == (6, 5)
    run = trainer(tmp_path, [entry("set_layer_lora_rank", ["attn.1", 0], 1)], model, eval_strategy="no", max_steps=2)
    run.train()
    assert run.model.transformer.h[0].attn.c_attn.r == {"default": 4}
    assert not hasattr(run.model.transformer.h[1].attn.c_attn, "base_layer")


OTHER_STARTS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": (
        {"lora_r": 5},
        "LoRA on transformer.h.0.attn.c_attn and 2 more (was rank 4, alpha 8, is rank 5, alpha 8)",
    ),
    "alpha": ({"lora_alpha": 16}, "lora_alpha (was 8, is 16)"),
    "rslora": ({"use_rslora": True}, "use_rslora (was False, is True)"),
    "dropout": ({"lora_dropout": 0.2}, "lora_dropout (was 0.1, is 0.2)"),
    "freeze": ({"lora_freeze_base": "all"}, "(was trained, is frozen)"),
    "fewer": ({"lora_target_modules": ["c_attn"]}, "LoRA on transformer.wte (was rank 4, alpha 8, is none)"),
    "more": (
        {"lora_target_modules": ["c_attn", "wte", "wpe"]},
        "LoRA on transformer.wpe (was none, is rank 4, alpha 8)",
    ),
}


@pytest.mark.parametrize("case", OTHER_STARTS)
def test_another_start_is_refused(whole: MorphingTrainer, tmp_path: Path, case: str) -> None:
    changes, message = OTHER_STARTS[case]
    with pytest.raises(CheckpointError) as caught:
        resumed(whole, tmp_path, 7, adapted(**changes))
    assert message in str(caught.value)
    assert "the run began with another model" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_start_without_adapters_is_refused(whole: MorphingTrainer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"LoRA on .*c_attn and 2 more \(was rank 4, alpha 8, is none\)"):
        resumed(whole, tmp_path, 7, tiny_model())


# ---- Damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


DAMAGES = {
    "missing": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "of another step": lambda path: shutil.copy(path.parent.with_name("checkpoint-2") / path.name, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_damage_is_named_and_passed_over(
    whole: MorphingTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    folder = tmp_path / "run"
    for step in (2, 8, 9):
        shutil.copytree(whole.run_folder / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    (folder / "journal.jsonl").write_bytes((folder / "checkpoint-9" / "journal.jsonl").read_bytes())
    DAMAGES[damage](folder / "checkpoint-9" / name)
    run = trainer(folder, SCHEDULE, adapted(), **SAVING)
    with pytest.raises(CheckpointError, match=name):
        run.find_bundle(str(folder / "checkpoint-9"), Consensus())
    with caplog.at_level(logging.WARNING, "morphing_trainer"):
        bundle = run.find_bundle(True, Consensus())
    assert bundle is not None
    assert bundle.path.name == "checkpoint-8"
    assert "checkpoint-9 is damaged and is passed over" in caplog.text
    assert name in caplog.text


def test_adapters_that_do_not_fit_the_state_are_refused(whole: MorphingTrainer, tmp_path: Path) -> None:
    """Whole files with a manifest of their own, but of another step: what is in them is held against the state."""
    folder = shutil.copytree(whole.run_folder / "checkpoint-8", tmp_path / "checkpoint-8")
    for name in ADAPTERS:
        shutil.copy(whole.run_folder / "checkpoint-6" / name, folder / name)
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    run = trainer(tmp_path / "run", SCHEDULE, adapted(), **SAVING)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: does not fit its description: .*h\.2\."):
        run.train(str(folder))
    for name in ADAPTERS:
        (folder / name).unlink()
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"adapter_(model|config)"):
        run.train(str(folder))


# ---- The trained model -----------------------------------------------------------------------------------------------

STOCK = """
import sys, torch
sys.modules["peft"] = None  # not to be had
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
assert "morphing_trainer" not in sys.modules
"""


def test_the_trained_model_is_stock_gpt2(whole: MorphingTrainer, tmp_path: Path) -> None:
    """Merged, plain names, and read by transformers alone, in a process that has neither PEFT nor this library."""
    whole.save_whole(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == PLAIN
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == {
        name for name, _ in tiny_model(n_layer=4).named_parameters()
    }
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    torch.save(TOKENS, tmp_path / "tokens.pt")
    argv = [str(tmp_path / name) for name in ("model", "tokens.pt", "logits.pt")]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *argv], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(whole.model), rtol=0, atol=1e-5)
    assert type(whole.model.transformer.h[0].attn.c_attn).__module__.startswith("peft"), "the run's own model stays"


def test_base_and_adapters_and_back(whole: MorphingTrainer, tmp_path: Path) -> None:
    """Each save replaces the one before, and leaves nothing of it behind."""
    folder, want = tmp_path / "model", logits(whole.model)
    for merged in (False, True, False):
        whole.args.save_merged = merged
        whole.save_whole(folder)
        assert {path.name for path in folder.iterdir()} == PLAIN | (set() if merged else {*ADAPTERS})
        for kind in (AutoModelForCausalLM, GPT2LMHeadModel):
            torch.testing.assert_close(logits(read(folder, kind)), want, rtol=0, atol=1e-5)
    whole.args.save_merged = True
    torch.testing.assert_close(logits(read(folder, AutoPeftModelForCausalLM)), want, rtol=0, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_save_that_was_cut_short_left_is_not_taken_along(tmp_path: Path) -> None:
    (tmp_path / ".model-new").mkdir()
    (tmp_path / ".model-new" / ADAPTERS[0]).write_text("{}")
    (tmp_path / ".model-new" / "vocab.json").write_text("{}")  # of a tokenizer that this run does not have
    run = trainer(tmp_path / "run", None, tiny_model())
    run.save_whole(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == PLAIN


@pytest.mark.parametrize("options", [None, {"lora_alpha": 4}, {"lora_r": 2}])
def test_a_plain_save_over_one_with_adapters(tmp_path: Path, options: dict[str, Any] | None) -> None:
    """By Trainer's own method: what stays behind there would be loaded with the new model."""
    trainer(tmp_path / "a", None, adapted(), save_merged=False).save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / ADAPTERS[0]).exists()
    model = tiny_model() if options is None else add_adapters(tiny_model(), LoraArguments(**options))
    run = trainer(tmp_path / "b", None, stirred(model))  # type: ignore[arg-type]
    run.save_model(str(tmp_path / "model"))
    assert {path.name for path in (tmp_path / "model").iterdir()} == PLAIN
    torch.testing.assert_close(logits(read(tmp_path / "model")), logits(run.model), rtol=0, atol=1e-5)


def test_the_best_model_may_have_other_adapters(tmp_path: Path) -> None:
    """Rank 4 with a tied embedding at the best step; none at the last."""
    schedule = [entry("set_lr", 2.0, 4), entry("set_attn_lora_rank", 0, 1), entry("set_embedding_lora_rank", 0, 1)]
    options = {"eval_steps": 2, "save_steps": 2, "max_steps": 8, "load_best_model_at_end": True, "max_grad_norm": 0.0}
    run = trainer(tmp_path, schedule, adapted(), save_strategy="steps", lr_scheduler_type="constant", **options)
    run.train()
    assert len(applied(run)) == 3
    assert run.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert {module: site.rank for module, site in ModelSpec.of(run.model).sites.items()} == {
        "transformer.h.0.attn.c_attn": 4,
        "transformer.h.1.attn.c_attn": 4,
        "transformer.wte": 4,
    }
    torch.testing.assert_close(logits(read(tmp_path / "checkpoint-4")), logits(run.model), rtol=0, atol=1e-5)
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, abs=1e-6)
    run.save_whole(tmp_path / "model")
    torch.testing.assert_close(logits(read(tmp_path / "model")), logits(run.model), rtol=0, atol=1e-5)
