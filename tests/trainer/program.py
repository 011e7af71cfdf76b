"""A training run in a process of its own, for what one process cannot show: signals, sudden death, several ranks.

The processes are forked from a server that has the imports behind it, so starting one takes milliseconds.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.layers import beside, saving, sharding
from morphing_trainer.memory.system import Amount
from morphing_trainer.run import applying
from morphing_trainer.sharding import reshard, whole
from tests.sharded import sharded
from tests.support import Tokens, losses, staged_data, tiny_model, trainer, weights
from tests.trainer.spoiling import Spoils

OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB"
)


@dataclass(frozen=True)
class Job:
    """What to run.

    Attributes:
        folder: of the run. Results of rank r are left in `<folder>-results/<r>.json` and `.safetensors`.
        resume: `resume_from_checkpoint`; "if possible" is True if there is a checkpoint, and a fresh start otherwise.
        staged: train in the three stages of `staged_data`, one of them in texts that go on from sample to sample.
        pause: seconds to sleep at the end of each step.
        signals: signal to raise in a rank during a step: (rank, step, signal number), any number of times.
        ignoring: the process is started with SIGINT and SIGTERM ignored, as a shell starts what is in its background.
        sharded: several processes divide the model (FSDP2).
        saves: at the end the model is saved as `<folder>/model`, as train.py does.
        lora: adapters that the model starts with.
        fails: (rank, what): this rank runs out of memory when it is to "grow", in the last micro-batch of a "step", or
            in a "trial" of more than 8 samples; of disk when it is to "save" or "write", or to
            "publish" step 8; or its disk does not answer ("stalls") at that step. Under "draw" it draws other numbers.
            Of what it writes itself of a sharded optimizer, "share" fails at step 8, "stuck share" never ends, and
            "slow share" ends when it trains step 11. "slow publish" takes it two steps at that step.
        pressed: (rank, step): memory is short for this rank at the end of this step.
        room: (rank, bytes) of memory that this rank finds free.
        spoils: (rank, steps, what): see `Spoils`.
    """

    folder: Path
    schedule: list[dict[str, Any]]
    resume: bool | str = False
    samples: int = 41
    staged: bool = False
    dropout: float = 0.0
    lora: LoraArguments = field(default_factory=LoraArguments)
    pause: float = 0.0
    signals: list[tuple[int, int, int]] = field(default_factory=list)
    ignoring: bool = False
    sharded: bool = False
    saves: bool = False
    fails: tuple[int, str] | None = None
    pressed: tuple[int, int] | None = None
    room: tuple[int, int] | None = None
    spoils: tuple[int, tuple[int, ...], str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-results")

    def weights(self, rank: int = 0) -> dict[str, torch.Tensor]:
        return load_file(self.results / f"{rank}.safetensors")

    def losses(self, rank: int = 0) -> list[float]:
        found: list[float] = json.loads((self.results / f"{rank}.json").read_text())
        return found

    @property
    def begun(self) -> Path:
        return self.results / "begun"


class Interferes(TrainerCallback):
    """Slows steps down, tells that training has begun, and raises signals."""

    def __init__(self, job: Job, rank: int) -> None:
        self.job = job
        self.rank = rank
        self.trainer: MorphingTrainer | None = None
        self.reached = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.begun.touch()
        if self.job.pressed is not None:
            assert self.trainer is not None and self.trainer.session is not None
            self.trainer.session.is_pressed = lambda: self.job.pressed == (self.rank, state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for rank, step, signum in self.job.signals:
            if (rank, step) == (self.rank, state.global_step + 1):
                signal.raise_signal(signum)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reached = state.global_step
        time.sleep(self.job.pause)


class RunsOut:
    """A hook on the last block: above `largest` samples memory runs out there, after `after` micro-batches.

    By then dropout has drawn, and micro-batches of the step may have left their gradients.
    """

    def __init__(self, largest: int, after: int = 0, error: Exception = OUT_OF_MEMORY) -> None:
        self.largest, self.after, self.error = largest, after, error
        self.calls = 0

    def __call__(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if module.training:
            self.calls += 1
            if self.calls > self.after and len(inputs[0]) > self.largest:
                raise type(self.error)(*self.error.args)


def fail(error: Exception) -> Callable[..., NoReturn]:
    def failing(*args: Any, **options: Any) -> NoReturn:
        raise error

    return failing


def at_step_8(what: str, reached: Callable[[], int]) -> Callable[[Path, Path], None]:
    """`publish`, but for the checkpoint of step 8: a full disk, or one that answers late or never."""
    publish = saving.publish

    def failing(staging: Path, final: Path) -> None:
        if final.name == "checkpoint-8":
            if what == "publish":
                raise OSError("no space left")
            begun = reached()
            wait_until(lambda: what == "slow publish" and reached() >= begun + 2, 1000 if what == "stalls" else 60)
        publish(staging, final)

    return failing


def share_of_step_8(what: str, reached: Callable[[], int]) -> Callable[..., None]:
    """`write_pieces`, but for the checkpoint of step 8: a full disk, or one that answers late or never."""
    write_pieces = sharding.write_pieces

    def failing(folder: Path, *share: Any) -> None:
        if "checkpoint-8-" in folder.parent.name:
            if what == "share":
                raise OSError("no space left")
            wait_until(lambda: what == "slow share" and reached() >= 10)
        write_pieces(folder, *share)

    return failing


def run(job: Job, environment: Mapping[str, str]) -> None:
    """In the process: train, and leave losses and weights behind."""
    os.environ.update(environment)
    for signum, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(signum, signal.SIG_IGN if job.ignoring else default)  # however the tests were started
    torch.set_num_threads(1)
    if job.sharded and environment:
        sharded()
    rank = int(environment.get("RANK", 0))
    job.results.mkdir(exist_ok=True)
    log = os.open(job.results / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    model = tiny_model(resid_pdrop=job.dropout, embd_pdrop=job.dropout, attn_pdrop=job.dropout)
    model = add_adapters(model, job.lora)  # type: ignore[assignment]
    backend = {"ddp_backend": "gloo"} if environment else {}
    options = {"disable_tqdm": True, "save_total_limit": 100, **backend, **job.options}
    data = {"stages": staged_data()} if job.staged else {"data": Tokens(job.samples)}
    interferes = Interferes(job, rank)
    spoils = [Spoils(job.spoils[1], what=job.spoils[2])] if job.spoils and job.spoils[0] == rank else []
    made = trainer(job.folder, job.schedule, model, callbacks=[interferes, *spoils], **data, **options)
    interferes.trainer = made
    if job.fails == (rank, "grow"):
        applying.grow = fail(MemoryError("no memory left"))  # type: ignore[assignment]
    if job.fails == (rank, "draw"):
        draws = applying.operation_rng
        applying.operation_rng = lambda seed, index: draws(seed + 1, index)  # type: ignore[assignment]
    if job.fails == (rank, "step"):
        made.model.transformer.h[-1].mlp.register_forward_pre_hook(RunsOut(1, 7))
    if job.fails == (rank, "trial"):
        made.model.transformer.h[-1].mlp.register_forward_pre_hook(RunsOut(8))
    if job.fails == (rank, "save"):
        saving.staging_folder = fail(OSError("no space left"))  # type: ignore[assignment]
    if job.fails == (rank, "write"):
        saving.random_states = fail(OSError("no space left"))  # type: ignore[assignment]
    if job.fails in ((rank, "publish"), (rank, "stalls"), (rank, "slow publish")):
        saving.publish = at_step_8(job.fails[1], lambda: interferes.reached)
    if job.fails in ((rank, "share"), (rank, "stuck share"), (rank, "slow share")):
        sharding.write_pieces = share_of_step_8(job.fails[1], lambda: interferes.reached)  # type: ignore[assignment]
    if job.room is not None and job.room[0] == rank:
        beside.system_memory = lambda: Amount(2**40 - job.room[1], 2**40)  # type: ignore[assignment, index]
    resume = job.resume
    if resume == "if possible":
        resume = any(job.folder.glob("checkpoint-*"))
        made.args.overwrite_output_dir = not resume
    made.train(resume)
    (job.results / f"{rank}.json").write_text(json.dumps(losses(made)))
    if job.saves:
        made.save_whole(job.folder / "model")
    reshard(made.model)  # an evaluation may have been the last
    found = {name: whole(weight) for name, weight in weights(made).items()}
    save_file({name: weight.contiguous() for name, weight in found.items()}, job.results / f"{rank}.safetensors")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _begin(target: Callable[[Any, Mapping[str, str]], None], job: Any, environment: Mapping[str, str]) -> None:
    gc.freeze()  # the many objects that the imports have made need not be looked through at every collection
    target(job, environment)


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def start(job: Job, processes: int = 1) -> list[ForkServerProcess]:
    """The ranks of a run, started as `torchrun` would."""
    return started(run, job, processes)


def started(target: Callable[[Any, Mapping[str, str]], None], job: Any, processes: int) -> list[ForkServerProcess]:
    """`target(job, environment)` in so many processes, with the environment that `torchrun` gives each."""
    environments: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    found = [server().Process(target=_begin, args=(target, job, environment)) for environment in environments]
    for process in found:
        process.start()
    return found


def finish(started: list[ForkServerProcess], seconds: float = 120) -> list[int | None]:
    """Exit codes of processes; one that hangs is killed and counts as None."""
    end = time.monotonic() + seconds
    codes: list[int | None] = []
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def complete(job: Job, processes: int = 1) -> Job:
    """Run to the end."""
    codes = finish(start(job, processes))
    logs = "\n".join(path.read_text()[-3000:] for path in job.results.glob("*.log"))
    assert codes == [0] * processes, logs
    return job


def newest(job: Job) -> int:
    """Step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name.split("-")[1]) for path in job.folder.glob("checkpoint-*")), default=0)


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "training did not get on"
        time.sleep(0.01)


def killed_repeatedly(job: Job, moments: Sequence[float]) -> list[int]:
    """Start the run and kill it (SIGKILL) so many seconds after training has begun, again and again.

    Every second time it has to save first, so that it gets on on a slow machine too. Returns the steps it had saved.
    """
    reached = []
    for number, moment in enumerate(moments):
        job.begun.unlink(missing_ok=True)
        before = newest(job)
        (process,) = start(job)
        wait_until(job.begun.exists)
        if number % 2:
            wait_until(lambda before=before: newest(job) > before)  # type: ignore[misc]
        time.sleep(moment)
        process.kill()
        assert finish([process]) == [-signal.SIGKILL], "the run was over before it was killed"
        reached.append(newest(job))
    return reached
