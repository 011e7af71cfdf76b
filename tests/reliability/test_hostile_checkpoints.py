"""Payloads in every file of a checkpoint, under a manifest that fits: refused by name, and nothing is overwritten."""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback
from transformers.trainer import safe_globals

from morphing_trainer import MorphingTrainer, add_adapters
from morphing_trainer.checkpoint import write_manifest
from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.cli.describe import named
from morphing_trainer.errors import CheckpointError, MorphError
from morphing_trainer.lora_arguments import LoraArguments
from morphing_trainer.models import load_model
from morphing_trainer.run.bundle import read_bundle
from tests.reliability.hostile import UNREADABLE, archive, edited, nothing_runs, pickled, safetensors
from tests.reliability.mutations import VALUES, _places
from tests.support import tiny_model, trainer

SCHEDULE = [
    {"name": "change_lr", "value": 0.5, "max_wait_iters": 1},
    {"name": "stack_layers", "value": 2, "max_wait_iters": 4},
]
JSON = ("morph_state.json", "trainer_state.json", "manifest.json", "config.json", "adapter_config.json")
PICKLES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
TENSORS = ("model.safetensors", "adapter_model.safetensors")
IGNORED = ("config.json", "adapter_config.json", "generation_config.json", "training_args.bin")
"""Written for others; a resume takes nothing from them but that they are whole."""


def runs(folder: Path, **changes: Any) -> MorphingTrainer:
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "eval_strategy": "no", "disable_tqdm": True}
    model = add_adapters(tiny_model(), LoraArguments(lora_r=2))
    return trainer(folder, SCHEDULE, model=model, **{**options, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    runs(folder).train()
    return folder / "checkpoint-3"


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "run" / "checkpoint-3")
    return tmp_path / "run" / "checkpoint-3"


def resealed(checkpoint: Path) -> None:
    """A manifest that fits what is in the folder: the one who changes a file can do that, too."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    write_manifest(checkpoint)


def refused(checkpoint: Path, *names: str, resume: bool = True) -> str:
    """Whoever reads the checkpoint raises one of our errors that names the file, and leaves the folder as it was."""
    before = set(checkpoint.parent.rglob("*"))
    with nothing_runs(checkpoint.parents[1]), pytest.raises(MorphError) as caught:
        if resume:
            runs(checkpoint.parent, max_steps=6).train(resume_from_checkpoint=str(checkpoint))
        else:
            read_bundle(checkpoint)
    if names:
        assert any(name in str(caught.value) for name in names), caught.value
    assert len(str(caught.value)) < 3000
    assert set(checkpoint.parent.rglob("*")) >= before
    return str(caught.value)


def test_every_file_of_a_checkpoint_is_attacked_here(saved: Path) -> None:
    found = {path.name for path in saved.iterdir()}
    assert found == {*JSON, *PICKLES, *TENSORS, *IGNORED, "journal.jsonl"}


def test_untouched_it_goes_on(checkpoint: Path) -> None:
    """The resealing alone is not what is refused."""
    resealed(checkpoint)
    run = runs(checkpoint.parent, max_steps=6)
    run.train(resume_from_checkpoint=str(checkpoint))
    assert run.model.config.n_layer == 4


@pytest.mark.parametrize("content", UNREADABLE)
def test_json_that_is_none(checkpoint: Path, content: str) -> None:
    for name in ("morph_state.json", "trainer_state.json", "journal.jsonl", "manifest.json"):
        kept = (checkpoint / name).read_bytes()
        tail = b"\n{}\n" if name == "journal.jsonl" else b""
        (checkpoint / name).write_bytes(UNREADABLE[content] + tail)
        if name != "manifest.json":
            resealed(checkpoint)
        if name == "journal.jsonl" and not UNREADABLE[content]:
            continue
        refused(checkpoint, name, resume=False)
        (checkpoint / name).write_bytes(kept)
        resealed(checkpoint)
    (checkpoint / "morph_state.json").write_bytes(UNREADABLE[content])
    with nothing_runs(checkpoint.parents[1]), pytest.raises(MorphError):
        named(str(checkpoint))


@pytest.mark.parametrize("name", [*PICKLES, "scaler.pt"])
@pytest.mark.parametrize("way", ["plain", "archive", "archive, protocol 4", "beside tensors", "no archive"])
def test_pickles_are_not_run(checkpoint: Path, name: str, way: str) -> None:
    marker = checkpoint.parents[1] / "executed"
    path = checkpoint / name
    match way:
        case "plain":
            path.write_bytes(pickled(marker))
        case "archive":
            archive(pickled(marker))(path)
        case "archive, protocol 4":
            archive(pickled(marker, 4))(path)
        case "beside tensors":
            if name == "scaler.pt":
                shutil.copy(checkpoint / "scheduler.pt", path)
            edited(path, lambda data: data[:-1] + b"0" + pickled(marker)[2:])
        case _:
            path.write_bytes(b"not an archive at all")
    resealed(checkpoint)
    refused(checkpoint, name, resume=False)


def test_training_args_are_never_read(checkpoint: Path) -> None:
    """Trainer writes them as a pickle; nobody reads it."""
    marker = checkpoint.parents[1] / "executed"
    (checkpoint / "training_args.bin").write_bytes(pickled(marker))
    resealed(checkpoint)
    with nothing_runs(checkpoint.parents[1], megabytes=1000):
        runs(checkpoint.parent, max_steps=4).train(resume_from_checkpoint=str(checkpoint))
        named(str(checkpoint))


def large(path: Path, count: int) -> None:
    """A tensor that claims `count` entries of the four that are stored."""
    torch.save({"state": {}, "param_groups": [], "more": torch.arange(4.0)}, path)
    number = b"J" + struct.pack("<i", count)
    edited(path, lambda data: data.replace(b"K\x04tq", number + b"tq").replace(b"K\x04\x85", number + b"\x85"))


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "compressed": archive(b"\x80\x02}q\x00.", {"data/0": bytes(200 << 20)}, compressed=True),
    "a long bytearray": archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 10**12) + b"\x85R."),
    "a tensor of a class": archive(b"\x80\x02ctorch\nFloatTensor\n\x8a\x08" + struct.pack("<q", 10**11) + b"\x85R."),
    "a storage of nothing": archive(
        b"\x80\x02}(X\x01\x00\x00\x00actorch.storage\nUntypedStorage\n\x8a\x08" + struct.pack("<q", 10**12) + b"\x85Ru."
    ),
    "more entries than stored": lambda path: large(path, 100_000),
    "far more entries than stored": lambda path: large(path, 2_000_000_000),
    "one number many times": lambda path: torch.save({"a": torch.zeros(1).expand(10**12)}, path),
    "deep": lambda path: (
        path.write_bytes(b"") or archive(b"\x80\x02" + b"]" * DEEP_PICKLE + b"a" * (DEEP_PICKLE - 1) + b".")(path)
    ),
    "a long text": archive(b"\x80\x02X" + struct.pack("<I", 2**31) + b"x."),
    "no end": archive(b"\x80\x02}q\x00"),
    "popped from nothing": archive(b"\x80\x0200000."),
    "an unknown storage": archive(
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x05\x00\x00\x00../..X\x03\x00\x00\x00cpuK\x04tQ."
    ),
    "two of one name": archive(b"\x80\x02}."),
    "a list": lambda path: torch.save([1, 2], path),
    "nothing of it": lambda path: torch.save({}, path),
}
DEEP_PICKLE = 5000


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_that_ask_for_too_much(checkpoint: Path, kind: str) -> None:
    path = checkpoint / "optimizer.pt"
    ARCHIVES[kind](path)
    if kind == "two of one name":
        import zipfile

        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    resealed(checkpoint)
    refused(checkpoint, "optimizer.pt", resume=False)


def test_what_runs_save_is_read(checkpoint: Path, tmp_path: Path) -> None:
    """Whatever torch keeps in a state: not only AdamW's tensors are let through."""
    kinds = [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.float64,
        torch.int8,
    ]
    whole = {
        "tensors": [torch.zeros(3, dtype=kind) for kind in kinds],
        "view": torch.arange(12.0).view(3, 4).T,
        "empty": torch.zeros(0, 5),
        "ordered": collections.OrderedDict(a=(1, 2.0, None, True, "x", b"y")),
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "set": {1, 2},
    }
    torch.save(whole, tmp_path / "state.pt")
    assert read_torch_file(tmp_path / "state.pt")["view"].shape == (4, 3)
    torch.save({"numpy": np.random.get_state(), "python": random.getstate()}, tmp_path / "rng.pth")
    assert len(read_torch_file(tmp_path / "rng.pth")["numpy"]) == 5
    with safe_globals():
        assert set(torch.load(checkpoint / "rng_state.pth", weights_only=True)) <= set(
            read_torch_file(checkpoint / "rng_state.pth")
        )


TRAINER_STATE: dict[str, Mapping[str, Any]] = {
    "an unknown field": {"__class__": "os.system"},
    "a step of text": {"global_step": "3"},
    "another step": {"global_step": 4},
    "a step without end": {"global_step": 10**400},
    "a history of text": {"log_history": ["x"]},
    "no history": {"log_history": 7},
    "intervals of text": {"save_steps": "all"},
    "callbacks as a list": {"stateful_callbacks": ["x"]},
    "a best metric that is a list": {"best_metric": [1]},
    "a best checkpoint that is a list": {"best_model_checkpoint": ["/"]},
}


@pytest.mark.parametrize("kind", TRAINER_STATE)
def test_states_of_the_trainer_that_no_run_writes(checkpoint: Path, kind: str) -> None:
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **TRAINER_STATE[kind]}))
    resealed(checkpoint)
    refused(checkpoint, "trainer_state.json", resume=False)


class Stops(EarlyStoppingCallback):  # type: ignore[misc, unused-ignore]
    """A callback with a state, which makes a folder when it is told to."""

    def wrong(self) -> None: ...


CALLBACKS: dict[str, Mapping[str, Any]] = {
    "a method replaced": {"Stops": {"args": {}, "attributes": {"on_step_end": "x"}}},
    "its class replaced": {"Stops": {"args": {}, "attributes": {"__class__": "x"}}},
    "an argument that it has not": {"Stops": {"args": {"path": "/etc/passwd"}, "attributes": {}}},
    "an argument of another kind": {"Stops": {"args": {"early_stopping_patience": {"a": 1}}, "attributes": {}}},
    "no mapping": {"Stops": 7},
    "no mapping inside": {"Stops": {"args": 3}},
    "control of text": {"TrainerControl": {"args": {"should_training_stop": "yes"}, "attributes": {}}},
    "control with more": {"TrainerControl": {"args": {}, "attributes": {"_new_training": 1}}},
}


@pytest.mark.parametrize("kind", CALLBACKS)
def test_states_of_callbacks_give_them_nothing_of_their_own(checkpoint: Path, kind: str) -> None:
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stateful_callbacks": CALLBACKS[kind]}))
    resealed(checkpoint)
    options: dict[str, Any] = {
        "restore_callback_states_from_checkpoint": True,
        "callbacks": [Stops()],
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "save_steps": 2,
        "metric_for_best_model": "loss",
    }
    with (
        nothing_runs(checkpoint.parents[1], megabytes=1000),
        pytest.raises(CheckpointError, match="trainer_state"),
    ):
        runs(checkpoint.parent, **options).train(resume_from_checkpoint=str(checkpoint))


def restate(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with safe_globals():
        state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def moment(state: dict[str, Any], name: str, value: Any) -> None:
    for entry in state["state"].values():
        entry[name] = value


STATES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a rate of text": ("optimizer.pt", lambda s: s["param_groups"][0].update(lr="fast")),
    "betas of text": ("optimizer.pt", lambda s: s["param_groups"][0].update(betas=("a", "b"))),
    "no betas": ("optimizer.pt", lambda s: s["param_groups"][0].pop("betas")),
    "fewer groups": ("optimizer.pt", lambda s: s["param_groups"].pop()),
    "fewer parameters": ("optimizer.pt", lambda s: s["param_groups"][0]["params"].pop()),
    "groups of numbers": ("optimizer.pt", lambda s: s.update(param_groups=[1, 2])),
    "a moment of another shape": ("optimizer.pt", lambda s: moment(s, "exp_avg", torch.zeros(3))),
    "a state of numbers": ("optimizer.pt", lambda s: s.update(state={0: 1})),
    "a method of the scheduler": ("scheduler.pt", lambda s: s.update(step="x", get_lr=7)),
    "any attribute of the scheduler": ("scheduler.pt", lambda s: s.update(optimizer=None)),
    "a scheduler's position of text": ("scheduler.pt", lambda s: s.update(last_epoch="x")),
    "no random state of Python": ("rng_state.pth", lambda s: s.pop("python")),
    "a random state of text": ("rng_state.pth", lambda s: s.update(python=("x",))),
    "a random state of numpy of text": ("rng_state.pth", lambda s: s.update(numpy="x")),
    "a short random state of torch": ("rng_state.pth", lambda s: s.update(cpu=torch.zeros(3, dtype=torch.uint8))),
}


@pytest.mark.parametrize("kind", STATES)
def test_states_that_no_run_writes(checkpoint: Path, kind: str) -> None:
    name, change = STATES[kind]
    restate(checkpoint / name, change)
    resealed(checkpoint)
    refused(checkpoint, name, name.partition(".")[0])


WEIGHTS: dict[str, bytes] = {
    "a header without end": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "no JSON": safetensors(b"!!python/object/apply:os.system [x]"),
    "deep": safetensors(b"[" * 100_000),
    "a declared size without end": safetensors(
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, b"1234"
    ),
    "a size that is not there": safetensors(
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    ),
    "an unknown type": safetensors({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "negative": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]}}),
    "overlapping": safetensors(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("a", "b")}, b"1234"
    ),
    "a pickle": b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R.",
    "no tensors": safetensors({}),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_none(checkpoint: Path, name: str, kind: str) -> None:
    (checkpoint / name).write_bytes(WEIGHTS[kind])
    resealed(checkpoint)
    refused(checkpoint, name)


def test_weights_of_other_kinds_and_names(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    for changed in ({**weights, "../../x": torch.zeros(1)}, {**weights, name: weights[name].repeat(2, 1)}):
        save_file(changed, path)
        resealed(checkpoint)
        refused(checkpoint, "model.safetensors")


def test_names_in_the_manifest_lead_nowhere(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    data = json.loads(path.read_text())
    entry = data["files"]["config.json"]
    for name in ("../outside", "/etc/passwd", "a/../../b", "C:\\x", "a\\..\\b", "\x00", "", ".", "nul\nline"):
        path.write_text(json.dumps({**data, "files": {**data["files"], name: entry}}))
        refused(checkpoint, "manifest.json", resume=False)
    for size in (-1, 2**70, "1", None, True):
        path.write_text(json.dumps({**data, "files": {**data["files"], "config.json": {**entry, "size": size}}}))
        refused(checkpoint, "manifest.json", "config.json", resume=False)


@pytest.mark.parametrize(
    "name", ["morph_state.json", "optimizer.pt", "model.safetensors", "journal.jsonl", "manifest.json"]
)
def test_links_and_pipes_are_no_files(checkpoint: Path, name: str) -> None:
    """A pipe would be waited for without end, a link leads out of the folder."""
    path = checkpoint / name
    (checkpoint.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(checkpoint.parent / "elsewhere")
    refused(checkpoint, name, resume=False)
    path.unlink()
    os.mkfifo(path)
    refused(checkpoint, name, resume=False)


def mutated_states(saved: Path, count: int, seed: int) -> Iterator[tuple[int, str]]:
    """The run's own part of the checkpoint with a few values replaced: what a fuzzer that knows the format does."""
    whole = (saved / "morph_state.json").read_text()
    for index in range(count):
        rng = random.Random(f"{seed} {index}")
        data = json.loads(whole)
        for _ in range(rng.choice([1, 1, 2])):
            holder, key = rng.choice(list(_places(data)))
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = rng.choice(VALUES)
        yield index, json.dumps(data)


def attacked(saved: Path, folder: Path, count: int, seed: int) -> list[str]:
    """What went wrong when mutated states were described and resumed."""
    found = []
    for index, text in mutated_states(saved, count, seed):
        run = folder / str(index)
        shutil.copytree(saved, run / "checkpoint-3")
        (run / "checkpoint-3" / "morph_state.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        resealed(run / "checkpoint-3")
        for read in (
            lambda run=run: named(str(run / "checkpoint-3")),
            lambda run=run: runs(run, max_steps=5, save_strategy="no").train(
                resume_from_checkpoint=str(run / "checkpoint-3")
            ),
        ):
            try:
                with nothing_runs(folder, seconds=20):
                    read()
            except MorphError:
                pass
            except Exception as error:
                found.append(f"seed {seed}, {index}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(run)
    return found


def test_mutated_states_are_read_or_refused(saved: Path, tmp_path: Path) -> None:
    assert not attacked(saved, tmp_path, 40, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_mutated_states_are_read_or_refused(saved: Path, tmp_path: Path) -> None:
    assert not attacked(saved, tmp_path, 2000, 2)


def test_a_checkpoint_as_a_model_runs_nothing_either(checkpoint: Path) -> None:
    (checkpoint / "training_args.bin").write_bytes(pickled(checkpoint.parents[1] / "executed"))
    (checkpoint / "pytorch_model.bin").write_bytes(pickled(checkpoint.parents[1] / "executed"))
    with nothing_runs(checkpoint.parents[1]):
        load_model(str(checkpoint))
