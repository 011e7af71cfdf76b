"""An evaluation in processes of its own, as `torchrun` would start them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.trainer.program import finish, server
from tests.validation.common import Packed, Prompted, evaluations, made, model


class Examples(TrainerCallback):
    """Counts what this process has made; only the main one's are shown."""

    made = 0

    def on_example(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.made += 1


def run(folder: Path, data: str, count: int, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """In the process: evaluate while training with a learning rate of 0, and leave behind what was logged."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = environment.get("RANK", "0")
    folder.mkdir(exist_ok=True)
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    samples: Any = Prompted(count) if data == "prompted" else Packed(count)
    backend = {"ddp_backend": "gloo"} if environment else {}
    schedule = [{"name": "stack_layers", "value": [0, 1, 1], "max_wait_iters": 1, "reevaluate": True}]
    fixed = {"max_steps": 2, "eval_steps": 2, "learning_rate": 0.0, "disable_tqdm": True}
    watch = Examples()
    trainer = made(folder / "run", samples, schedule, taught(), callbacks=[watch], **{**fixed, **backend, **options})
    trainer.train()
    (folder / f"{rank}.json").write_text(json.dumps([*evaluations(trainer), watch.made]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def taught() -> Any:
    """A model that gets some tokens right: plain training on the blocks."""
    trained = model()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    blocks = Packed(12).blocks
    for _ in range(60):
        trained(input_ids=blocks, labels=blocks).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return trained


def evaluate(folder: Path, data: str, count: int, processes: int = 1, **options: Any) -> list[list[Any]]:
    """What each process has logged of its evaluations, and at the end how many examples it has made."""
    environments: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = [server().Process(target=run, args=(folder, data, count, options, each)) for each in environments]
    for process in started:
        process.start()
    codes = finish(started)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.log")))
    assert codes == [0] * processes, logs
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
