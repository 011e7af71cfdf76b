"""Loading GPT-2: the stock layout, the original one, the Hub, and everything that can be wrong with a checkpoint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from morphing_trainer import LoraArguments, add_adapters, save_model
from morphing_trainer.cli.arguments import ModelArguments
from morphing_trainer.errors import ConfigError, ModelError
from morphing_trainer.models import load_model, new_model, scratch_config
from tests.support import stirred

Tensors = dict[str, torch.Tensor]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def tiny(**changes: Any) -> GPT2Config:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 32, "n_positions": 16}
    return GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **changes})


def logits(model: GPT2LMHeadModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.fixture
def model() -> GPT2LMHeadModel:
    return new_model(tiny(), seed=1)


@pytest.fixture
def stock(model: GPT2LMHeadModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


def to_original_layout(folder: Path) -> None:
    """Rewrite a saved model as OpenAI's `gpt2` is stored: no prefix, with mask buffers."""
    weights = {k.removeprefix("transformer."): v for k, v in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    size = config["n_positions"]
    for layer in range(config["n_layer"]):
        weights[f"h.{layer}.attn.bias"] = torch.ones(size, size).tril().view(1, 1, size, size)
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, n_inner=None)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: Callable[[Tensors], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- Loading from a folder ---


def test_stock_layout(model: GPT2LMHeadModel, stock: Path) -> None:
    loaded = load_model(str(stock))
    assert not loaded.training
    assert loaded.dtype == torch.float32
    assert loaded.config.resid_pdrop == 0.1
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_original_layout(model: GPT2LMHeadModel, stock: Path) -> None:
    to_original_layout(stock)
    loaded = load_model(str(stock))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.config._name_or_path == str(stock)


def test_untied_head(tmp_path: Path) -> None:
    untied = new_model(tiny(tie_word_embeddings=False), seed=2)
    untied.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.lm_head.weight is not loaded.transformer.wte.weight
    torch.testing.assert_close(logits(loaded), logits(untied), rtol=0, atol=0)


def test_type_attention_and_dropout(model: GPT2LMHeadModel, stock: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(stock)
    assert load_model(str(stock)).dtype == torch.float32
    assert load_model(str(stock), dtype="auto").dtype == torch.bfloat16
    assert load_model(str(stock), dtype=torch.float64).dtype == torch.float64
    loaded = load_model(str(stock), dtype="float16", attn_implementation="eager", dropout=0.25)
    assert loaded.dtype == torch.float16
    assert loaded.config._attn_implementation == "eager"
    assert loaded.config.resid_pdrop == loaded.config.embd_pdrop == loaded.config.attn_pdrop == 0.25
    assert loaded.transformer.drop.p == loaded.transformer.h[1].mlp.dropout.p == 0.25


WEIGHTS: dict[str, tuple[Callable[[Tensors], Any], list[str]]] = {
    "missing": (
        lambda w: (w.pop("transformer.h.1.ln_1.weight"), w.pop("transformer.ln_f.bias")),
        ["missing weights: transformer.h.1.ln_1.weight, transformer.ln_f.bias"],
    ),
    "left over": (
        lambda w: w.update({"score.weight": torch.zeros(2, 16)}),
        ["weights that a GPT-2 language model does not have: score.weight"],
    ),
    "a buffer's name elsewhere": (
        lambda w: w.update({"transformer.h.0.mlp.masked_bias": torch.zeros(1)}),
        ["does not have: transformer.h.0.mlp.masked_bias"],
    ),
    "a deeper model": (
        lambda w: w.update({k.replace("h.1.", "h.2."): v.clone() for k, v in w.items() if "h.1." in k}),
        ["does not have: transformer.h.2.attn.c_attn.weight, ", " and 6 more"],
    ),
    "shape": (
        lambda w: w.update({"transformer.ln_f.weight": torch.zeros(17)}),
        ["of another shape than config.json says: transformer.ln_f.weight (17,) instead of (16,)"],
    ),
    "two heads": (
        lambda w: w.update({"lm_head.weight": torch.zeros(32, 16)}),
        ["config.json ties lm_head to wte", '"tie_word_embeddings": false'],
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit(stock: Path, case: str) -> None:
    change, messages = WEIGHTS[case]
    edit_weights(stock, change)
    with pytest.raises(ModelError) as caught:
        load_model(str(stock))
    for message in [f"model_name_or_path {str(stock)!r}", *messages]:
        assert message in str(caught.value)


def test_missing_head_of_an_untied_model(stock: Path) -> None:
    edit_config(stock, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=re.escape("missing weights: lm_head.weight")):
        load_model(str(stock))


CONFIGS: dict[str, tuple[dict[str, Any] | str, str]] = {
    "not JSON": ("{", "config.json cannot be read"),
    "not a mapping": ("[]", "names no model_type, and only 'gpt2' is supported"),
    "no type": ("{}", "names no model_type, and only 'gpt2' is supported"),
    "another model": ({"model_type": "llama"}, "is of model_type 'llama', and only 'gpt2' is supported"),
    "unknown model": ({"model_type": "zzz"}, "is of model_type 'zzz', and only 'gpt2' is supported"),
    "wrong type": ({"n_layer": "two"}, "config.json is not valid: Validation error for field 'n_layer'"),
    "activation": ({"activation_function": "gelu_now"}, "'gelu_now'; did you mean 'gelu_new'?"),
    "heads": ({"n_head": 3}, "must be divisible by num_heads"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_do_not_fit(stock: Path, case: str) -> None:
    change, message = CONFIGS[case]
    if isinstance(change, str):
        (stock / "config.json").write_text(change)
    else:
        edit_config(stock, **change)
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        load_model(str(stock))
    assert str(stock) in str(caught.value)


def test_damaged_and_missing_files(model: GPT2LMHeadModel, stock: Path, tmp_path: Path) -> None:
    weights = stock / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-100], whole[:6], b"garbage " * 9, b""):
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match=r"cannot be loaded: .*damaged; save or download the model again"):
            load_model(str(stock))
    weights.unlink()
    torch.save(model.state_dict(), stock / "pytorch_model.bin")  # pickled: not read
    with pytest.raises(ModelError, match=r"no file named model\.safetensors.* Only safetensors are read"):
        load_model(str(stock))
    with pytest.raises(ModelError, match=r"this is a file; give the folder"):
        load_model(str(stock / "config.json"))
    with pytest.raises(ModelError, match=rf"has no config\.json; did you mean '{stock}'\?"):
        load_model(str(tmp_path))
    (stock / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json; give a GPT-2 checkpoint such as"):
        load_model(str(stock))
    (stock / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no config\.json; it holds adapters only: save them beside"):
        load_model(str(stock))


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "../none", "~/none-at-all", "a/b/c", "", "x..y", "a b"])
def test_folders_that_do_not_exist(name: str) -> None:
    with pytest.raises(ModelError, match=re.escape(f"model_name_or_path {name!r}: there is no such folder")):
        load_model(name)


def test_arguments_that_cannot_be_used(stock: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype: unknown 'float61'; did you mean 'float64'\?"):
        load_model(str(stock), dtype="float61")
    with pytest.raises(ConfigError, match=r"dropout: must be at least 0 and below 1, is 1"):
        load_model(str(stock), dropout=1)
    with pytest.raises(ConfigError, match=r"attn_implementation: 'fast' cannot be used"):
        load_model(str(stock), attn_implementation="fast")
    with pytest.raises(ConfigError, match=r"model_revision: 'v1' has no meaning for the local folder"):
        load_model(str(stock), revision="v1")


# --- Loading from a Hub ---


class Hub(ThreadingHTTPServer):
    """The requests of `from_pretrained` and `snapshot_download`, answered as huggingface.co does."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = repositories
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"/(api/models/)?(someone/[\w-]+)(?:/(revision|tree|resolve)/([\w.]+)(?:/(.+))?)?", path)
        if found is None or found[2] not in self.server.repositories:
            return self.fail(404, "RepoNotFound")
        kind, revision, name = found[3], found[4], found[5]
        folder = self.server.repositories[found[2]]
        if revision not in (None, "main", COMMIT):
            return self.fail(404, "RevisionNotFound")
        if kind == "resolve":
            if "gated" in found[2]:
                return self.fail(403, "GatedRepo")
            file = folder / name
            return self.answer(file.read_bytes(), etag=name) if file.is_file() else self.fail(404, "EntryNotFound")
        if kind == "tree":
            files = sorted(folder.iterdir())
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            return self.answer(json.dumps(tree).encode())
        info = {"id": found[2], "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in sorted(folder.iterdir())]}
        return self.answer(json.dumps(info).encode())

    def answer(self, body: bytes, etag: str = "none") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


CHILD = """
import json, sys, time, torch
from morphing_trainer.errors import ModelError
from morphing_trainer.models import load_model
tokens = torch.tensor(json.loads(sys.argv[1]))
for name in sys.argv[2:]:
    start = time.monotonic()
    try:
        model = load_model(*name.split("@")[:1], revision=(name.split("@") + [None])[1])
        with torch.no_grad():
            answer = [model.config._name_or_path, model(tokens).logits.tolist()]
    except ModelError as error:
        answer = str(error)
    print(json.dumps([name, answer, time.monotonic() - start]))
"""


def in_a_new_process(home: Path, endpoint: str, *names: str) -> dict[str, tuple[Any, float]]:
    """What `load_model` gives for each name ("id" or "id@revision") with this Hub and this cache, and its seconds."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_")) and "proxy" not in k.lower()
    }
    env = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(TOKENS.tolist()), *names],
        env=env, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (answer, seconds) for name, answer, seconds in lines}


@pytest.fixture
def adapted(model: GPT2LMHeadModel) -> Any:
    return stirred(add_adapters(model, LoraArguments(lora_r=2)))


@pytest.fixture
def hub(stock: Path, adapted: Any, tmp_path: Path) -> Iterator[Hub]:
    save_model(adapted, tmp_path / "adapted", merge=False)
    to_original_layout(stock)
    (stock / "onnx.safetensors").write_bytes(b"not ours to download")
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    (llama / "model.safetensors").write_bytes(b"very large")
    repositories = {"someone/gpt2-original": stock, "someone/gated": stock, "someone/llama": llama}
    repositories["someone/adapted"] = tmp_path / "adapted"
    with Hub(repositories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_hub(hub: Hub, model: GPT2LMHeadModel, adapted: Any, tmp_path: Path) -> None:
    names = ["someone/gpt2-original", "someone/nope", "someone/gated", "someone/llama", "someone/gpt2-original@v9"]
    found = in_a_new_process(tmp_path / "home", hub.url, *names, "someone/adapted")
    torch.testing.assert_close(torch.tensor(found["someone/adapted"][0][1]), logits(adapted), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits(adapted), logits(model), atol=1e-3)
    name, values = found["someone/gpt2-original"][0]
    assert name == "someone/gpt2-original"
    torch.testing.assert_close(torch.tensor(values), logits(model), rtol=1e-6, atol=1e-6)

    nope, gated, llama, revision = (found[name][0] for name in names[1:])
    assert nope.startswith("model_name_or_path 'someone/nope': there is no such folder here, and no such model on http")
    assert "check the name, or run `hf auth login` if it is private" in nope
    assert gated.startswith("model_name_or_path 'someone/gated': access to it is restricted; ask for access at http")
    assert "is of model_type 'llama', and only 'gpt2' is supported" in llama
    assert "has no revision 'v9'; check model_revision" in revision
    downloads = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert not any("onnx" in line or ("llama/resolve" in line and "model" in line) for line in downloads)

    # Without a network: an error within seconds for what is not there, and the cache for what is.
    hub.shutdown()
    hub.server_close()
    found = in_a_new_process(tmp_path / "home", hub.url, "someone/other", "someone/gpt2-original")
    answer, seconds = found["someone/other"]
    assert answer.startswith("model_name_or_path 'someone/other': there is no such folder here, http://127.0.0.1:")
    assert "cannot be reached and the cache does not hold it" in answer
    assert "give a local folder that holds the model" in answer
    assert seconds < 10
    assert torch.tensor(found["someone/gpt2-original"][0][1]).equal(torch.tensor(values))


# --- New models ---


def test_new_models_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = new_model(tiny(), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    second, other = new_model(tiny(), seed=3), new_model(tiny(), seed=4)
    assert first.training
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


def test_scratch_config(tmp_path: Path) -> None:
    config = scratch_config(ModelArguments(n_layer=1, n_embd=32, dtype="float64"), 300, 24, eos_token_id=7)
    assert (config.n_layer, config.n_embd, config.n_head, config.vocab_size, config.n_positions) == (1, 32, 4, 300, 24)
    assert config.activation_function == "gelu_pytorch_tanh"
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0
    assert config.bos_token_id == config.eos_token_id == 7
    built = new_model(config, seed=0)
    assert built.dtype == torch.float64
    built.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.n_positions == 24
    longer = ModelArguments(n_positions=64, n_inner=40, dropout=0.5, dtype="auto", attn_implementation="eager")
    config = scratch_config(longer, 300, 24, eos_token_id=None)
    assert (config.n_positions, config.n_inner, config.attn_pdrop) == (64, 40, 0.5)
    assert new_model(config, seed=0).config._attn_implementation == "eager"


def test_every_problem_of_a_shape_is_named() -> None:
    shape = ModelArguments(n_layer=0, n_head=3, n_embd=128, n_inner=-1, n_positions=8, activation_function="gelu_now")
    with pytest.raises(ConfigError) as caught:
        scratch_config(shape, vocab_size=10, block_size=16, eos_token_id=10)
    assert str(caught.value).splitlines() == [
        "n_layer: must be at least 1, is 0",
        "n_inner: must be at least 1, is -1",
        "n_embd: 128 is not divisible by n_head 3; try 126 or 129",
        "block_size: 16 is longer than n_positions 8; lower it or raise n_positions",
        "vocab_size: 10 has no room for the end-of-text token 10; raise it",
        "activation_function: unknown 'gelu_now'; did you mean 'gelu_new'?",
    ]


def test_other_faults_of_a_shape() -> None:
    with pytest.raises(ConfigError, match=r"dropout: must be at least 0 and below 1, is 1"):
        scratch_config(ModelArguments(dropout=1.0), 300, 16, 0)
    with pytest.raises(ConfigError, match=r"n_embd: 2 is not divisible by n_head 4; try 4$"):
        scratch_config(ModelArguments(n_embd=2), 300, 16, 0)
    with pytest.raises(ConfigError, match=r"attn_implementation"):
        new_model(scratch_config(ModelArguments(attn_implementation="fast"), 300, 16, 0), seed=0)
