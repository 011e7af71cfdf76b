"""Payloads in models, tokenizers and adapters: nothing of theirs is run, and nothing is built that cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from morphing_trainer import LoraArguments, add_adapters, save_model
from morphing_trainer.cli.describe import named
from morphing_trainer.data.tokenizer import load_tokenizer, train_tokenizer
from morphing_trainer.errors import DataError, ModelError, MorphError
from morphing_trainer.models import describe_model, load_model
from tests.reliability.hostile import UNREADABLE, nothing_runs, pickled, safetensors
from tests.support import stirred, tiny_model

CODE = "import os\nos.makedirs({marker!r}, exist_ok=True)\nraise SystemExit(3)\n"
REDIRECT = "elsewhere"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with adapters beside it, and a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    save_model(stirred(add_adapters(tiny_model(), LoraArguments(lora_r=2))), folder / "model", merge=False)
    train_tokenizer(["some text"], 257).save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tokenizer(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "tokenizer", tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def planted(folder: Path, marker: Path) -> None:
    """Code under every name that a loader may look for."""
    code = CODE.format(marker=str(marker))
    for name in (
        "evil.py",
        "modeling_gpt2.py",
        "configuration_gpt2.py",
        "tokenization.py",
        "__init__.py",
        "sitecustomize.py",
    ):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(pickled(marker))


def read_all(folder: Path) -> None:
    load_model(str(folder))
    describe_model(str(folder))
    named(str(folder))


def refused(folder: Path, *names: str, read: Callable[[str], Any] = load_model) -> None:
    with nothing_runs(folder.parent), pytest.raises(MorphError) as caught:
        read(str(folder))
    if names:
        assert any(name in str(caught.value) for name in names), caught.value


HARMLESS: dict[str, Mapping[str, Any]] = {
    "auto_map": {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
    "auto_map elsewhere": {"auto_map": {"AutoConfig": "elsewhere/evil--evil.Config", "AutoModel": "elsewhere/e--e.M"}},
    "trust_remote_code": {"trust_remote_code": True, "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "another name": {"_name_or_path": REDIRECT, "name_or_path": REDIRECT},
    "another class": {"architectures": ["evil.Model", "../evil"], "transformers_version": "999"},
    "custom pipelines": {"custom_pipelines": {"text-generation": {"impl": "evil.Pipeline", "pt": ["evil.Model"]}}},
    "private fields": {"_attn_implementation_internal": "evil", "_commit_hash": "../../x"},
    "generation": {"custom_generate": "evil", "task_specific_params": {"x": {"trust_remote_code": True}}},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_config_that_points_to_code(model: Path, kind: str) -> None:
    """Loaded as the GPT-2 that it is, or refused; the code beside it is never run."""
    planted(model, model.parent / "executed")
    rewrite(model / "config.json", HARMLESS[kind])
    with nothing_runs(model.parent):
        try:
            read_all(model)
        except MorphError:
            assert kind not in ("auto_map", "auto_map elsewhere", "another name")


CONFIGS: dict[str, Mapping[str, Any]] = {
    "layers without end": {"n_layer": 10**9},
    "a width without end": {"n_embd": 2 * 10**9},
    "an MLP without end": {"n_inner": 10**12},
    "a vocabulary without end": {"vocab_size": 10**12},
    "larger than its weights": {"n_embd": 8192, "n_layer": 100},
    "a number of a thousand digits": {"n_head": 10**1000},
    "negative": {"n_layer": -1},
    "nothing": {"n_embd": 0},
    "text": {"n_layer": "2"},
    "a list": {"n_embd": [16]},
    "not a number": {"layer_norm_epsilon": "x"},
    "a head that does not divide": {"n_head": 3},
    "an unknown activation": {"activation_function": "os.system"},
    "another family": {"model_type": "bert"},
    "a path as a family": {"model_type": "../../evil"},
    "quantised": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "dropout": {"attn_pdrop": 7},
    "an unknown attention": {"attn_implementation": "elsewhere/evil"},
    "an unknown type": {"dtype": "__import__('os')"},
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("read", [load_model, describe_model, named])
def test_configs_that_describe_no_model(model: Path, kind: str, read: Callable[[str], Any]) -> None:
    rewrite(model / "config.json", CONFIGS[kind])
    if kind in (
        "an unknown attention",
        "an unknown type",
        "larger than its weights",
    ):  # may be no fault of the description
        with nothing_runs(model.parent):
            try:
                read(str(model))
            except MorphError:
                return
        assert kind != "larger than its weights" or read is not load_model
        return
    refused(model, read=read)


@pytest.mark.parametrize("content", UNREADABLE)
def test_files_of_a_model_that_are_no_json(model: Path, content: str) -> None:
    for name in ("config.json", "adapter_config.json"):
        kept = (model / name).read_bytes()
        (model / name).write_bytes(UNREADABLE[content])
        for read in (load_model, describe_model, named):
            refused(model, read=read)
        (model / name).write_bytes(kept)
    (model / "generation_config.json").write_bytes(UNREADABLE[content])
    with nothing_runs(model.parent), contextlib.suppress(MorphError):
        load_model(str(model))


def test_an_index_leads_nowhere(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "outside.safetensors")
    for name in ("../outside.safetensors", str(model.parent / "outside.safetensors"), 7, None, {"a": 1}):
        (model / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"transformer.wte.weight": name}})
        )
        refused(model)
    for content in UNREADABLE.values():
        (model / "model.safetensors.index.json").write_bytes(content)
        refused(model)


def test_weights_that_are_none(model: Path) -> None:
    huge = safetensors({"transformer.wte.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    for name in ("model.safetensors", "adapter_model.safetensors"):
        kept = (model / name).read_bytes()
        for content in (b"", pickled(model.parent / "executed"), huge, safetensors(b"[" * 50_000), safetensors({})):
            (model / name).write_bytes(content)
            refused(model)
        (model / name).write_bytes(kept)


def test_without_safetensors_no_pickle_is_taken(model: Path) -> None:
    (model / "model.safetensors").unlink()
    planted(model, model.parent / "executed")
    refused(model)


ADAPTERS: dict[str, Mapping[str, Any]] = {
    "a pattern without end": {"target_modules": r"(.*)*\d{50}"},
    "a pattern of alternatives without end": {"target_modules": "(a|a|t|transformer|.)+x"},
    "a pattern of many parts": {"target_modules": ".*.*.*.*.*.*.*.*x"},
    "a long pattern": {"target_modules": "a?" * 600},
    "a rank under such a pattern": {"rank_pattern": {"(.+)+x": 3}},
    "an exception by such a pattern": {"exclude_modules": "(([a-z])+.)+[A-Z]"},
    "a rank without end": {"r": 10**12},
    "a rank of text": {"r": "2"},
    "an alpha without end": {"lora_alpha": float("inf")},
    "layers repeated without end": {"layer_replication": [[0, 10**7]]},
    "code": {"lora_variant": "evil", "use_dora": True},
    "another kind": {"peft_type": "../evil"},
    "a kind that computes with data": {"init_lora_weights": "pissa"},
    "modules of its own": {"modules_to_save": ["lm_head"]},
    "megatron": {"megatron_config": {"x": 1}, "megatron_core": "evil"},
    "modules that are not there": {"target_modules": ["evil"]},
    "modules that are numbers": {"target_modules": [1, 2]},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapter_configs_that_are_none(model: Path, kind: str) -> None:
    rewrite(model / "adapter_config.json", ADAPTERS[kind])
    refused(model)


def test_adapters_that_point_elsewhere(model: Path) -> None:
    """The base model is the one beside them, whatever they name."""
    other = model.parent / REDIRECT
    other.mkdir()
    planted(other, model.parent / "executed")
    mapping = {"base_model_class": "Model", "parent_library": "evil"}
    for name in (str(other), "elsewhere/evil", "../../etc"):
        rewrite(
            model / "adapter_config.json",
            {"base_model_name_or_path": name, "auto_mapping": mapping, "revision": "../x", "unknown": {"auto_map": 1}},
        )
        planted(model, model.parent / "executed")
        with nothing_runs(model.parent):
            read_all(model)


def test_patterns_that_people_write_are_read(model: Path) -> None:
    weights = (model / "adapter_model.safetensors").read_bytes()
    modules = json.loads((model / "adapter_config.json").read_text())["target_modules"]
    for pattern in (r".*\.(c_attn|c_proj|c_fc)", r".*attn.c_attn|.*mlp\.c_(fc|proj)", modules):
        rewrite(model / "adapter_config.json", {"target_modules": pattern})
        describe_model(str(model))
    assert (model / "adapter_model.safetensors").read_bytes() == weights


TOKENIZERS: dict[str, Mapping[str, Any]] = {
    "auto_map": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}},
    "auto_map elsewhere": {"auto_map": {"AutoTokenizer": ["elsewhere/evil--evil.T", None]}, "trust_remote_code": True},
    "another class": {"tokenizer_class": "os.system"},
    "another class by path": {"tokenizer_class": "../evil.Tokenizer"},
    "a template": {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    "tokens of its own": {"added_tokens_decoder": {"0": {"content": "x", "special": "x"}, "-5": 3}},
    "files elsewhere": {"tokenizer_file": "../../../etc/passwd", "vocab_file": "/etc/passwd", "name_or_path": "/etc"},
    "a length without end": {"model_max_length": 10**400},
    "methods": {"encode": "x", "__class__": "evil", "backend": "evil", "_tokenizer": 7},
    "a token that is a list": {"eos_token": ["x"]},
    "a token of a kind": {"eos_token": {"__type": "AddedToken", "content": {"a": 1}}},
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizer_configs_that_point_to_code(tokenizer: Path, kind: str) -> None:
    planted(tokenizer, tokenizer.parent / "executed")
    rewrite(tokenizer / "tokenizer_config.json", TOKENIZERS[kind])
    with nothing_runs(tokenizer.parent):
        try:
            assert load_tokenizer(str(tokenizer))("some text")["input_ids"]
        except DataError as error:
            assert "tokenizer" in str(error)


def backend(tokenizer: Path, **changes: Any) -> None:
    path = tokenizer / "tokenizer.json"
    data = json.loads(path.read_text())
    data |= {key: value for key, value in changes.items() if key != "model"}
    data["model"] |= changes.get("model", {})
    path.write_text(json.dumps(data))


BACKENDS: dict[str, Mapping[str, Any]] = {
    "an unknown part": {"pre_tokenizer": {"type": "Python", "code": "import os"}},
    "merges of nothing": {"model": {"merges": [["x", "y"]]}},
    "merges of numbers": {"model": {"merges": [1, 2]}},
    "negative tokens": {"model": {"vocab": {"a": -1}}},
    "tokens without end": {"model": {"vocab": {"a": 2**70}}},
    "a sparse vocabulary": {"model": {"vocab": {"a": 2**31}, "merges": []}},
    "a pattern that is none": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    },
    "a broken map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a template of unknown tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "?", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", BACKENDS)
def test_tokenizers_that_are_none(tokenizer: Path, kind: str) -> None:
    backend(tokenizer, **BACKENDS[kind])
    with nothing_runs(tokenizer.parent):
        try:
            load_tokenizer(str(tokenizer))
        except DataError as error:
            assert "tokenizer" in str(error)


@pytest.mark.parametrize("content", UNREADABLE)
def test_files_of_a_tokenizer_that_are_no_json(tokenizer: Path, content: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        kept = (tokenizer / name).read_bytes()
        (tokenizer / name).write_bytes(UNREADABLE[content])
        with nothing_runs(tokenizer.parent), pytest.raises(DataError, match="tokenizer"):
            load_tokenizer(str(tokenizer))
            raise DataError("tokenizer: read, without harm")
        (tokenizer / name).write_bytes(kept)
    assert isinstance(load_tokenizer(str(tokenizer)), PreTrainedTokenizerFast)


def test_names_that_lead_elsewhere(tmp_path: Path) -> None:
    for name in (
        "../../etc",
        "a/../../b",
        "/dev/zero",
        "\x00",
        "a\x00b",
        "x" * 5000,
        "~root/nothing",
        "file:///etc",
        "-x",
    ):
        with nothing_runs(tmp_path):
            with pytest.raises(ModelError):
                load_model(name)
            with pytest.raises(DataError):
                load_tokenizer(name)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").symlink_to(tmp_path / "pipe")
    refused(tmp_path / "folder")
