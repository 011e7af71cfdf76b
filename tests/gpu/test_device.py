"""What depends on the device, on each there is: `pytest -m gpu` runs the GPU's share, and the CPU keeps it alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from tests.sharded import ENVIRONMENT
from tests.support import losses, same, tiny_model, trainer, weights
from tests.trainer.common import entry
from tests.trainer.program import Job, finish, started

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
GROWTH = [
    entry("stack_layers", 2, 2),
    entry("widen_mlp", 2, 2, noise=0.01),
    entry("freeze_layer", "mlp.0", 1),
    entry("unfreeze_layer", "mlp.0", 1),
    entry("set_attn_lora_rank", 4, 1),
    entry("set_attn_lora_rank", 2, 1),
    entry("merge_lora_weights", None, 1, restart=False),
]
SAVING = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 10}


def on(device: str, **options: Any) -> dict[str, Any]:
    return {"use_cpu": device == "cpu", **options}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Resume is exact to the bit where the device's kernels are."""
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    if before is None:
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@DEVICES
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_run_that_grows_resumes_to_the_bit(device: str, bf16: bool, tmp_path: Path) -> None:
    drops = tiny_model(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    whole = trainer(tmp_path / "whole", GROWTH, drops, **on(device, bf16=bf16, **SAVING))
    whole.train()
    resumed = trainer(tmp_path / "resumed", GROWTH, drops, **on(device, bf16=bf16, **SAVING))
    resumed.train(str(tmp_path / "whole" / "checkpoint-4"))
    assert next(whole.model.parameters()).device.type == device
    assert same(weights(whole), weights(resumed))
    assert losses(resumed) == losses(whole)


@DEVICES
def test_compiled_as_eager(device: str, tmp_path: Path) -> None:
    """With the device's usual backend on a GPU; on the CPU that would need a C++ compiler."""
    torch._dynamo.reset()
    options = {"max_steps": 8, "eval_strategy": "no"}
    eager = trainer(tmp_path / "eager", GROWTH[:2], **on(device, **options))
    eager.train()
    backend = "inductor" if device == "cuda" else "eager"
    compiling = {"torch_compile": True, "torch_compile_backend": backend, **options}
    compiled = trainer(tmp_path / "compiled", GROWTH[:2], **on(device, **compiling))
    compiled.train()
    torch._dynamo.reset()
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-3)


@DEVICES
@pytest.mark.parametrize("way", [pytest.param("ddp", marks=pytest.mark.long), "fsdp2"])
def test_a_single_rank(device: str, way: str, tmp_path: Path) -> None:
    """NCCL on a GPU, gloo on the CPU: one process of a group does what one process does."""
    alone = trainer(tmp_path / "alone", GROWTH, **on(device))
    alone.train()
    (process,) = started(single_rank, Job(tmp_path / way, GROWTH, options=on(device), sharded=way == "fsdp2"), 1)
    assert finish([process]) == [0], (tmp_path / f"{way}.log").read_text()[-3000:]
    found = torch.load(tmp_path / f"{way}.pt", weights_only=True)
    assert found["losses"] == pytest.approx(losses(alone), rel=1e-4)
    for name, weight in weights(alone).items():
        torch.testing.assert_close(found["weights"][name], weight.cpu(), rtol=0, atol=2e-4)


def single_rank(job: Job, environment: Mapping[str, str]) -> None:
    """In the process: the only rank of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update(group | (ENVIRONMENT if job.sharded else {}))
    cpu = bool(job.options["use_cpu"])
    if job.sharded and cpu:
        from tests.sharded import allow_on_cpu

        allow_on_cpu()
    log = os.open(job.folder.with_name(f"{job.folder.name}.log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    backend = {"ddp_backend": "gloo"} if cpu else {"ddp_backend": "nccl"}
    made = trainer(job.folder, job.schedule, **{**backend, **job.options})
    made.train()
    assert torch.distributed.is_initialized()
    found = {name: weight.cpu() for name, weight in made.whole_weights().items()}
    torch.save({"losses": losses(made), "weights": found}, job.folder.with_name(f"{job.folder.name}.pt"))
    torch.distributed.destroy_process_group()


class PeakMemory(TrainerCallback):
    """The device's highest use of memory until the end of each step."""

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available() and args.device.type == "cuda":
            torch.cuda.synchronize()
            self.peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


@pytest.mark.gpu
def test_memory_after_an_operation_is_that_of_the_new_model(tmp_path: Path) -> None:
    """The old model and its moments are gone: a run that has grown needs what one needs that began so, and 5 % more."""
    grown, begun = PeakMemory(), PeakMemory()
    size = {"n_embd": 512, "n_head": 8, "vocab_size": 4096, "n_positions": 16}
    options = on("cuda", max_steps=8, eval_strategy="no")
    trainer(tmp_path / "grown", GROWTH[:2], tiny_model(**size), callbacks=[grown], **options).train()
    start = tiny_model(**{**size, "n_layer": 4, "n_inner": 4 * 512 * 2})
    trainer(tmp_path / "begun", [], start, callbacks=[begun], **options).train()
    assert grown.peaks[-1] <= 1.05 * begun.peaks[-1]


@pytest.mark.gpu
def test_the_largest_batch_hits_its_target(tmp_path: Path) -> None:
    """`adjust_batch_size` picks a batch whose step stays below the target, and twice as large a one would not."""
    target = {"target_vram_percent": 60, "max_batch_size": 65536}
    made = trainer(tmp_path / "run", [entry("adjust_batch_size", target, 2)], **on("cuda", max_steps=3))
    made.train()
    assert made.session is not None
    (executed,) = made.session.state.executed
    measured = executed["measured"]
    assert measured["batch_size"] >= 8
    assert measured["memory_percent"] <= 60


@DEVICES
def test_adapters_on_a_tied_embedding(device: str, tmp_path: Path) -> None:
    model = add_adapters(tiny_model(), LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4))
    made: MorphingTrainer = trainer(tmp_path / "run", [entry("merge_lora_weights", None, 2)], model, **on(device))  # type: ignore[arg-type]
    made.train()
    assert made.model.lm_head.base_layer.weight is made.model.transformer.wte.base_layer.weight
    assert losses(made)[-1] < losses(made)[0]
