"""Starting from the Hub: the original layout of `gpt2`, a link that breaks, and everything that can be wrong there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from morphing_trainer.cli import train as train_py
from tests.hub.conftest import WRITES, WRONG
from tests.hub.program import INPUT, command, load_as_anybody, tokenizer
from tests.hub.program import load as load_ours
from tests.hub.server import Fault, HubServer
from tests.hub.test_training import logits
from tests.hub.warm import Warm
from tests.support import VOCAB, tiny_model


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small model in the files and names of 2019: no prefix, mask buffers, no head; n_inner null."""
    folder = tmp_path_factory.mktemp("original")
    tiny_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    weights = load((folder / "model.safetensors").read_bytes())
    named = {name.removeprefix("transformer."): weight for name, weight in weights.items() if name != "lm_head.weight"}
    mask = torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16)
    named |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}
    (folder / "model.safetensors").write_bytes(save(named, {"format": "pt"}))
    config = json.loads((folder / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in ("transformers_version", "dtype")}
    (folder / "config.json").write_text(json.dumps(kept | {"n_inner": None, "n_ctx": 16, "model_type": "gpt2"}))
    assert not any(name.startswith("transformer.") for name in named) and "h.0.attn.bias" in named
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected() -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = tiny_model().eval()(INPUT).logits
    return found


def start(*argv: str) -> None:
    raise SystemExit(train_py.main(list(argv)))


def test_training_from_the_original_layout(
    original: dict[str, bytes], hub: HubServer, warm: Warm, tmp_path: Path
) -> None:
    """By train.py, from a name of one part as `gpt2` has; what it becomes goes to the Hub and names it."""
    hub.store.create("gpt2", files=original)
    found = logits(warm, tmp_path / "a.json", "gpt2", work=load_ours)
    torch.testing.assert_close(found["gpt2"], expected(), rtol=1e-6, atol=1e-6)
    text, schedule = tmp_path / "text.txt", tmp_path / "schedule.yaml"
    text.write_text("\n\n".join(" ".join(f"w{(a * b) % VOCAB}" for b in range(40)) for a in range(40)))
    schedule.write_text("- {name: stack_layers, value: 2, init: identity, max_wait_iters: 2}\n")
    options: dict[str, Any] = {
        "model_name_or_path": "gpt2",
        "train_file": text,
        "scaling_schedule_file": schedule,
        "block_size": 16,
        "max_steps": 4,
        "save_strategy": "no",
        "use_cpu": "true",
        "output_dir": tmp_path / "from-gpt2",
        "push_to_hub": "true",
        "per_device_train_batch_size": 4,
    }
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = warm.run(start, *argv, HF_TOKEN=WRITES)
    assert done.code == 0, done.said
    assert re.search(r"^pushed to http\S+/me/from-gpt2/commit/", done.said, re.MULTILINE)
    files = hub.store.repositories["me/from-gpt2"].history()[0].files
    card = files["README.md"].content.decode()
    assert "base_model: gpt2" in card and "It began as [gpt2]" in card and "text.txt" in card
    assert str(tmp_path) not in card + files["journal.jsonl"].content.decode() + files["config.json"].content.decode()
    assert len(logits(warm, tmp_path / "b.json", "me/from-gpt2", work=load_as_anybody)["me/from-gpt2"]) == 2


def test_what_could_not_be_pushed_is_refused_before_the_data_are_read(
    hub: HubServer, warm: Warm, tmp_path: Path
) -> None:
    """And nothing is made on the Hub."""
    argv = ["--train_file", str(tmp_path / "missing.txt"), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    for token, name, says in (
        (WRONG, "x", "does not know the token"),
        (WRITES, "other/x", "hub_model_id: other/x is not me's"),
        (WRITES, "library/x", "is not me's"),
        (WRITES, "me/x", "missing.txt"),
    ):
        done = warm.run(start, *argv, "--push_to_hub", "true", "--hub_model_id", name, HF_TOKEN=token)
        assert done.code == 2 and says in done.said, done.said
    assert not hub.store.repositories


def test_plan_and_apply(original: dict[str, bytes], hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    hub.store.create("library/gpt2", files=original)
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text("- {name: widen_mlp, value: 2, max_wait_iters: 2}\n")
    done = warm.run(command, "plan", str(schedule), "--model", "library/gpt2", "--json")
    assert done.code == 0 and '"parameters"' in done.said, done.said
    assert not hub.asked("resolve/.*safetensors"), "a plan needs no weights"
    done = warm.run(command, "apply", "library/gpt2", "widen_mlp=2", "--out", str(tmp_path / "wide"))
    assert done.code == 0, done.said
    found = logits(warm, tmp_path / "out.json", str(tmp_path / "wide"), work=load_ours)
    torch.testing.assert_close(found[str(tmp_path / "wide")], expected(), rtol=1e-5, atol=1e-5)


def test_a_link_that_breaks_and_a_busy_hub(
    original: dict[str, bytes], hub: HubServer, warm: Warm, tmp_path: Path
) -> None:
    """The rest of the weights is asked for, not all of them again."""
    hub.store.create("library/far", files=original)
    hub.faults += [Fault("GET /cdn/", times=1, cut=9000)]
    found = logits(warm, tmp_path / "out.json", "library/far", work=load_ours)
    assert not isinstance(found["library/far"], str), found["library/far"]
    torch.testing.assert_close(found["library/far"], expected(), rtol=1e-6, atol=1e-6)
    assert len(hub.asked("GET /cdn/")) == 2


def test_what_cannot_be_started_from(original: dict[str, bytes], hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """One clear message each, from the loader and from `morph apply` alike."""
    hub.store.create(
        "library/pickled", files={"config.json": original["config.json"], "pytorch_model.bin": b"\x80\x02"}
    )
    hub.store.create("library/gated", files=original).gated = True
    hub.store.create("other/private", private=True, files=original)
    names = ["library/pickled", "library/gated", "other/private", "library/nothing"]
    said = logits(warm, tmp_path / "out.json", *names, work=load_ours, token=WRITES)
    assert "safetensors" in said[names[0]] and "Only safetensors are read" in said[names[0]]
    assert "access to it is restricted; ask for access at http" in said[names[1]]
    for name in names[2:]:
        assert f"{name!r}: there is no such folder here, and no such model on http" in said[name]
    for name in names:
        done = warm.run(command, "apply", name, "widen_mlp=2", "--out", str(tmp_path / "never"), HF_TOKEN=WRITES)
        assert done.code == 2 and "Traceback" not in done.said and len(done.said.splitlines()) == 1, done.said
    assert not (tmp_path / "never").exists()
