"""Adapters on disk: what PEFT and transformers read from them, and that nothing is read that does not fit."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from morphing_trainer import without_adapters
from morphing_trainer.checkpoint.adapters import CONFIG, WEIGHTS, read_adapters, read_config, write_adapters
from morphing_trainer.engine import dressed
from morphing_trainer.errors import CheckpointError, ModelError
from morphing_trainer.lineage import AdapterChange, ModelSpec, Site, readapt, transplant_weights
from morphing_trainer.lineage.adapters import canonical
from morphing_trainer.models import load_model
from tests.support import Tokens, by_peft, stirred, tiny_model

Tensors = dict[str, torch.Tensor]
TOKENS = Tokens(3, seed=9).tokens
WTE_A = "base_model.model.transformer.wte.lora_embedding_A"
HEAD_B = "base_model.model.lm_head.lora_B.weight"


def attn(layer: int, name: str = "c_attn") -> str:
    return f"transformer.h.{layer}.attn.{name}"


def adapted(sites: dict[str, Site], rslora: bool = False, **shape: Any) -> GPT2LMHeadModel:
    """A model with these adapters, and something in them."""
    model = tiny_model(**shape)
    spec = ModelSpec.of(model)
    start = ModelSpec(spec.config, adapter=canonical({}, LoraConfig(use_rslora=rslora, lora_dropout=0.1)))
    new = start.readapted(sites)
    weights = transplant_weights(readapt(start, new, AdapterChange(1)), dict(model.named_parameters()))
    made = stirred(dressed(new, weights, like=model))
    assert isinstance(made, GPT2LMHeadModel)
    return made


ONE = {attn(0): Site(4, 8)}
EMBEDDING = {"transformer.wte": Site(3, 8)}
MIXED = {
    attn(0): Site(4, 8),
    attn(1): Site(2, 3.5),
    attn(1, "c_proj"): Site(7, 8),
    "transformer.h.0.mlp.c_fc": Site(4, 8),
    "transformer.h.1.mlp.c_proj": Site(1, 40),
    "transformer.wte": Site(5, 6),
    "transformer.wpe": Site(3, 8),
}
# Above twenty targets PEFT condenses their list; layers 1, 10 and 11 share the beginning of their names.
DEEP = {attn(layer, name): Site(1 + layer % 3, 4 + layer) for layer in range(12) for name in ("c_attn", "c_proj")}
MODELS: dict[str, tuple[dict[str, Site], dict[str, Any]]] = {
    "one": (ONE, {}),
    "embedding": (EMBEDDING, {}),
    "embedding of rank 1": ({"transformer.wte": Site(1, 8)}, {}),
    "mixed": (MIXED, {}),
    "mixed, rsLoRA": (MIXED, {"rslora": True}),
    "mixed, untied": (MIXED | {"lm_head": Site(6, 2)}, {"tie_word_embeddings": False}),
    "deep": (DEEP, {"n_layer": 12}),
    "deep, all alike": ({module: Site(2, 8) for module in DEEP}, {"n_layer": 12}),
    "deep, not all": ({attn(layer): Site(2, 8) for layer in (0, 1, 2, *range(4, 24))}, {"n_layer": 24}),
}


def write(model: GPT2LMHeadModel, folder: Path, home: Path | None = None) -> Path:
    """Base and adapters, as a checkpoint holds them."""
    without_adapters(model, merge=False).save_pretrained(folder)
    write_adapters(folder, ModelSpec.of(model), dict(model.named_parameters()), home or folder)
    return folder


def over_the_base(folder: Path) -> Any:
    """The base model by itself, then PEFT's own way to put adapters on it."""
    base = folder.parent / "base-only"
    shutil.copytree(folder, base, ignore=lambda *_: [CONFIG, WEIGHTS])
    return PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), str(folder))


READERS: dict[str, Callable[[Path], Any]] = {
    "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
    "GPT2LMHeadModel": GPT2LMHeadModel.from_pretrained,
    "PeftModel": over_the_base,
    "AutoPeftModelForCausalLM": AutoPeftModelForCausalLM.from_pretrained,
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


@pytest.mark.parametrize("case", MODELS)
def test_what_others_read(tmp_path: Path, case: str) -> None:
    """The same logits, within 1e-5 absolute (merged or not, float32 sums in another order)."""
    sites, options = MODELS[case]
    model = adapted(sites, **options)
    folder = write(model, tmp_path / "saved")
    want = logits(model)
    assert float((logits(without_adapters(model, merge=False)) - want).abs().max()) > 0.05
    for name, read in READERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of tied layers and mixed layouts
            found = logits(read(folder))
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    ours = load_model(str(folder))
    assert torch.equal(logits(ours), want)
    assert ModelSpec.of(ours).to_dict()["adapter"] == ModelSpec.of(model).to_dict()["adapter"]


def test_a_folder_that_was_moved(tmp_path: Path) -> None:
    """The base model beside the adapters is read, not one where the folder once stood."""
    model = adapted(MIXED)
    folder = write(model, tmp_path / "saved")
    folder.rename(tmp_path / "moved")
    write(adapted(ONE, seed=5), tmp_path / "saved")
    for read in (AutoModelForCausalLM.from_pretrained, GPT2LMHeadModel.from_pretrained):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(logits(read(tmp_path / "moved")), logits(model), rtol=0, atol=1e-5)
    assert torch.equal(logits(load_model(str(tmp_path / "moved"))), logits(model))


def test_what_is_written(tmp_path: Path) -> None:
    model = adapted(MIXED, rslora=True)
    write(model, tmp_path, home=Path("runs/a/checkpoint-5"))
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(Path("runs/a/checkpoint-5").resolve())
    assert config["inference_mode"] is True
    assert config["use_rslora"] is True
    assert config["lora_dropout"] == 0.1
    assert sorted(config["target_modules"]) == sorted([*MIXED, "lm_head"])
    both = {"transformer.wte": 5, "lm_head": 5}
    ranks = {module: site.rank for module, site in MIXED.items()} | both
    assert {m: config["rank_pattern"].get(m, config["r"]) for m in config["target_modules"]} == ranks
    saved = load_file(tmp_path / WEIGHTS)
    assert len(saved) == 2 * (len(MIXED) + 1)
    assert torch.equal(saved[HEAD_B], saved[WTE_A].T)
    base = load_file(tmp_path / "model.safetensors")
    assert base.keys() == load_file(_plain(tmp_path / "plain")).keys()
    assert model.peft_config["default"].inference_mode is False, "the live model's own config is not changed"


def _plain(folder: Path) -> Path:
    tiny_model().save_pretrained(folder)
    return folder / "model.safetensors"


def test_a_base_model_in_several_files(tmp_path: Path) -> None:
    model = adapted(MIXED)
    write(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    without_adapters(model, merge=False).save_pretrained(tmp_path, max_shard_size="10KB")
    (tmp_path / "model-of-old.safetensors").write_bytes(b"not one of them")
    assert len(list(tmp_path.glob("model-0*"))) > 1
    assert torch.equal(logits(load_model(str(tmp_path))), logits(model))
    next(tmp_path.glob("model-0*")).unlink()
    with pytest.raises(ModelError, match=r"its weights cannot be loaded: .*model-00"):
        load_model(str(tmp_path))


def test_adapters_that_peft_saved(tmp_path: Path) -> None:
    """Base and adapters that others have put into one folder start a run here."""
    model = stirred(by_peft(tiny_model(), r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_fc"]))
    tiny_model().save_pretrained(tmp_path)
    model.save_pretrained(str(tmp_path))
    read = load_model(str(tmp_path))
    assert torch.equal(logits(read), logits(model))
    assert len(ModelSpec.of(read).sites) == 4


# --- Strictness ---


def edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


FIRST = f"base_model.model.{attn(0)}.lora_A.weight"
DAMAGE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop(FIRST), f"{FIRST} is missing (1 in all)"),
    "all missing": (lambda t: t.clear(), "is missing; "),
    "extra": (lambda t: t.update({"x": torch.ones(1)}), "x is not part of the model (1 in all)"),
    "other shape": (
        lambda t: t.update({FIRST: torch.ones(5, 16)}),
        f"{FIRST} has shape [5, 16], expected [4, 16] (1 in all)",
    ),
    "transposed": (lambda t: t.update({FIRST: t[FIRST].T}), f"{FIRST} has shape [16, 4], expected [4, 16]"),
    "head missing": (lambda t: t.pop(HEAD_B), f"{HEAD_B} is missing"),
    "head of its own": (
        lambda t: t[HEAD_B].mul_(2),
        f"{HEAD_B} is not {WTE_A} transposed, though the model shares the weight that they adapt (1 in all)",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    change, message = DAMAGE[case]
    model = adapted(MIXED)
    write(model, tmp_path)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        read_adapters(tmp_path, ModelSpec.of(model))
    assert str(caught.value).startswith(f"{tmp_path / WEIGHTS}: does not fit its description: ")
    assert message in str(caught.value)
    with pytest.raises(ModelError, match="does not fit its description"):
        load_model(str(tmp_path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    model = adapted(ONE)
    write(model, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    for broken in (b"", whole[:40], whole[:-8]):
        (tmp_path / WEIGHTS).write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors: cannot be read"):
            read_adapters(tmp_path, ModelSpec.of(model))
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors: cannot be read"):
            load_model(str(tmp_path))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors: cannot be read"):
        load_model(str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(whole)
    good = json.loads((tmp_path / CONFIG).read_text())
    wrong = [{"r": 0}, {"r": "4"}, {"lora_alpha": 0}, {"lora_alpha": None}, {"lora_alpha": float("nan")}]
    wrong += [{"alpha_pattern": {"c_attn": -1}}, {"rank_pattern": None}, {"target_modules": "["}, {"lora_dropout": "x"}]
    wrong += [{"target_modules": [5]}, {"peft_type": "NOPE"}, {"arrow_config": {}}]
    for text in ("", "{", "[]", '"x"', "{}", *(json.dumps({**good, **change}) for change in wrong)):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(ModelError, match=r"adapter_config\.json: "):
            load_model(str(tmp_path))


def test_other_kinds_of_adapters(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text('{"peft_type": "IA3", "target_modules": ["c_attn"], "feedforward_modules": []}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: holds IA3 adapters; LoRA can be morphed"):
        read_config(tmp_path)


def test_ways_to_begin(tmp_path: Path) -> None:
    """What was drawn once is read now; but some ways to begin take a part out of the base model each time."""
    model = adapted(ONE)
    write(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for harmless in ("eva", "gaussian", "orthogonal", False):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "init_lora_weights": harmless}))
        assert torch.equal(logits(load_model(str(tmp_path))), logits(model))
    for harmful in ("pissa", "pissa_niter_4", "olora", "corda"):
        (tmp_path / CONFIG).write_text(json.dumps({**config, "init_lora_weights": harmful}))
        with pytest.raises(ModelError, match=rf"init_lora_weights '{harmful}' changes the base model when"):
            load_model(str(tmp_path))


def test_a_config_without_the_adapters_it_describes(tmp_path: Path) -> None:
    """Other ranks in the config than in the weights."""
    write(adapted(ONE), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(ModelError, match=r"lora_A.weight has shape \[4, 16\], expected \[5, 16\]"):
        load_model(str(tmp_path))
    (tmp_path / CONFIG).write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match=r"model_name_or_path .*q_proj"):
        load_model(str(tmp_path))
