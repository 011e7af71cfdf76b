"""A resumed run ends where the uninterrupted one does, to the last bit, whatever lies between."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.operations import OPERATIONS
from morphing_trainer.run.journal import effective, read_journal
from morphing_trainer.run.signals import RunInterrupted
from tests.support import Tokens, losses, same, tiny_model, trainer, weights
from tests.trainer.common import (
    DROPOUT,
    HALVES,
    StopsAfter,
    applied,
    entry,
    evaluations,
    ledger,
    optimizer_state,
    rates,
)

EVERY_OPERATION = [
    entry("change_lr", 0.5, 0),
    entry("change_batch_size", 0.5, 1),
    entry("stack_layers", 2, 1),
    entry("change_grad_accum", 1.5, 1),
    entry("widen_mlp", 1.5, 1, noise=0.1),
    entry("set_warmup_iters", 4, 1),
    entry("freeze_layer", ["attn.0", "wpe"], 1),
    entry("change_eval_interval", 0.5, 1),
    entry("set_batch_size", 5, 1, reevaluate=True),
    entry("reset_lr_schedule", None, 2),
    entry("set_mlp_width", 100, 1, split="newborn"),
    entry("set_grad_accum", 2, 1),
    entry("unfreeze_layer", "attn.0", 1),
    entry("change_eval_iters", 1.5, 1),
    entry("reset_optimizer_state", "mlp.*", 1),
    entry("set_lr", 8e-3, trigger_loss=math.inf),
    entry("set_batch_size_relative", 0.9, 1),
    entry("change_warmup_iters", 0.5, 1),
    entry("set_eval_iters", 2, 1),
    entry("set_eval_interval", 3, 1),
    entry("adjust_batch_size", {"max_batch_size": 8}, 1, keep_effective=True),
]
LORA_OPERATIONS = [
    entry("decrease_attn_lora_scaling", 1.5, 1),
    entry("set_layer_lora_rank", ["attn.1", 3], 1),
    entry("decrease_vocab_lora_scaling", 0.5, 1),
    entry("stack_layers", 2, 1),
    entry("merge_lora_weights", None, 1, reevaluate=True),
    entry("change_lora_alpha", 2, 1),
    entry("set_embedding_lora_rank", 0, 1),
    entry("set_layer_lora_rank", ["mlp.*", 2], 1),
    entry("set_attn_lora_rank", 2, 1, residual="drop"),
    entry("change_lora_alpha", 0.5, 0, compensate=True),
    entry("set_embedding_lora_rank", 3, 1),
    entry("widen_mlp", 1.5, 1, noise=0.1),
    entry("freeze_layer", ["attn.0", "wte"], 1),
    entry("merge_lora_weights", None, 1, restart=False),
    entry("set_attn_lora_rank", 4, 1),
]
RUN = {
    "max_steps": 24,
    "gradient_accumulation_steps": 2,
    "warmup_steps": 2,
    "eval_steps": 4,
    "eval_iters": 2,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "save_total_limit": 100,
}


def make(folder: Path, schedule: Any = None, **changes: Any) -> MorphingTrainer:
    return trainer(folder, schedule, tiny_model(**DROPOUT), data=Tokens(61), **{**RUN, **changes})


def uninterrupted(folder: Path, schedule: Any = None, **changes: Any) -> MorphingTrainer:
    run = make(folder, schedule, **{"save_strategy": "steps", "save_steps": 1, **changes})
    run.train()
    return run


def operations(folder: Path) -> list[dict[str, Any]]:
    """The operations that led to the run as it is, without what depends on the clock, or on memory."""
    found = []
    for event in effective(read_journal(folder / "journal.jsonl")):
        if event["event"] == "operation":
            record = {key: value for key, value in event["record"].items() if key != "seconds"}
            if record["note"].startswith("measured: "):
                del record["note"]
            found.append({"record": record, "entry": event["entry"], "spec": event["spec"], "index": event["index"]})
        if event["event"] == "evaluation":
            found.append({"loss": event["loss"], "step": event["step"], "index": event["index"]})
    return found


def assert_same_end(resumed: MorphingTrainer, whole: MorphingTrainer) -> None:
    assert resumed.state.global_step == whole.state.global_step
    assert same(weights(resumed), weights(whole))
    assert same(optimizer_state(resumed), optimizer_state(whole))
    for read in (losses, rates, evaluations, applied):
        assert read(resumed) == read(whole)
    assert operations(resumed.run_folder) == operations(whole.run_folder)


@HALVES
def test_from_every_step_of_a_run_with_every_operation(tmp_path: Path, first: int) -> None:
    whole = uninterrupted(tmp_path / "whole", EVERY_OPERATION)
    assert [line["name"] for line in EVERY_OPERATION] == [operation for operation, _ in applied(whole)]
    elsewhere = {"advance_stage"}  # which needs stages: tests/trainer/test_stages.py
    assert {line["name"] for line in EVERY_OPERATION + LORA_OPERATIONS} | elsewhere == {*OPERATIONS}
    assert whole.state.epoch > 2
    for step in range(first, 25, 2):
        torch.manual_seed(step)  # the resumed run must not depend on it
        resumed = make(tmp_path / f"from-{step}", EVERY_OPERATION)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_end(resumed, whole)


@HALVES
def test_from_every_step_of_a_run_with_lora(tmp_path: Path, first: int) -> None:
    """Adapters from the start, tied and with dropout of their own; they change, go, and come again.

    16 // 3 is rank 5, and 3 / 1.5 gives rank 8: from the rank alone a resumed run would work out 7.
    """
    model = add_adapters(tiny_model(**DROPOUT), LoraArguments(3, 8, lora_dropout=0.1))
    options = {**RUN, "model": model, "data": Tokens(61), "max_steps": 16}
    whole = trainer(tmp_path / "whole", LORA_OPERATIONS, save_strategy="steps", save_steps=1, **options)
    whole.train()
    assert [line["name"] for line in LORA_OPERATIONS] == [operation for operation, _ in applied(whole)]
    for step in range(first, 17, 2):
        torch.manual_seed(step)
        resumed = trainer(tmp_path / f"from-{step}", LORA_OPERATIONS, **options)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_end(resumed, whole)


def test_other_random_numbers_would_be_noticed(tmp_path: Path) -> None:
    """Negative control: without the random state of the checkpoint the end is another one."""
    whole = uninterrupted(tmp_path / "whole")
    resumed = make(tmp_path / "resumed")
    resumed._load_rng_state = lambda checkpoint: None  # type: ignore[method-assign]
    resumed.train(str(tmp_path / "whole" / "checkpoint-7"))
    assert not same(weights(resumed), weights(whole))


@pytest.mark.parametrize("epochs", [3, 2.5])
def test_by_epochs(tmp_path: Path, epochs: float) -> None:
    """Saved at the ends of epochs, where the order of evaluating, deciding, saving and morphing matters."""
    schedule = [
        entry("set_batch_size", 6, trigger_loss=math.inf),
        entry("stack_layers", 2, 3),
        entry("freeze_layer", "wpe", trigger_loss=math.inf),
        entry("set_lr", 1e-3, 0),
    ]
    by_epoch = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": epochs, "eval_steps": None}
    whole = uninterrupted(tmp_path / "whole", schedule, save_strategy="epoch", **by_epoch)
    assert len(applied(whole)) == 4
    saved = [int(path.name.split("-")[1]) for path in (tmp_path / "whole").glob("checkpoint-*")]
    assert len(saved) == 3
    for step in saved:
        resumed = make(tmp_path / f"from-{step}", schedule, **by_epoch)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_end(resumed, whole)


def test_saved_at_the_last_step_of_an_epoch_before_its_end(tmp_path: Path) -> None:
    """Saving by steps comes before the end of the epoch, which the resumed run must still live through."""
    schedule = [entry("stack_layers", 2, trigger_loss=math.inf), entry("set_lr", 1e-3, trigger_loss=math.inf)]
    by_epoch = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3, "eval_steps": None}
    whole = uninterrupted(tmp_path / "whole", schedule, **by_epoch)
    assert applied(whole) == [("stack_layers", 8), ("set_lr", 16)]
    for step in (7, 8, 9, 16):
        resumed = make(tmp_path / f"from-{step}", schedule, **by_epoch)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_end(resumed, whole)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("reduce_lr_on_plateau", {"patience": 0, "factor": 0.5, "threshold": 0.5}),
        ("greedy", {"patience": 1, "factor": 0.5, "warmup": 0}),
    ],
)
def test_schedulers_with_a_memory(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """They go on through a change of the rate, a morph and a resume: what they have done to the rate stays done."""
    schedule = [entry("change_lr", 0.5, 5), entry("stack_layers", 2, 4), entry("change_lr", 3.0, 6)]
    changes = {
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": options,
        "eval_steps": 2,
        "warmup_steps": 0,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "eval_iters": None,
    }
    whole = uninterrupted(tmp_path / "whole", schedule, **changes)
    assert len(applied(whole)) == 3
    seen = rates(whole)
    lowered = [step for step in range(1, 24) if seen[step] != seen[step - 1]]
    assert {5, 15} <= set(lowered)
    assert seen[5] == pytest.approx(seen[4] * 0.5)
    assert seen[15] == pytest.approx(seen[14] * 3.0)
    assert len(lowered) > 2, "the scheduler never acted"
    assert seen[9] == seen[8], "the morph changed the rate"
    for step in (4, 5, 9, 10, 17):
        resumed = make(tmp_path / f"from-{step}", schedule, **changes)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert_same_end(resumed, whole)


def test_samples_through_resumes(tmp_path: Path) -> None:
    """Three resumes, each with other batches than were planned; every sample once in every epoch."""
    schedule = [entry("set_batch_size", 6, 3), entry("stack_layers", 2, 4), entry("set_grad_accum", 2, 5)]
    options = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1}
    samples: list[int] = []
    stops: list[int | None] = [5, 9, 16, None]
    for number, stop in enumerate(stops):
        run = ledger(tmp_path, 41, schedule, save_total_limit=100, **options)
        if stop is not None:
            run.add_callback(StopsAfter(stop))
        run.train(None if number == 0 else True)
        samples += run.samples
    assert [sorted(samples[start : start + 41]) for start in (0, 41, 82)] == [list(range(41))] * 3
    assert len(samples) == 123


def test_a_checkpoint_is_a_plain_model(tmp_path: Path) -> None:
    whole = uninterrupted(tmp_path, [entry("stack_layers", 2, 3), entry("widen_mlp", 2, 4)], max_steps=10)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-10").eval()
    assert (plain.config.n_layer, plain.config.n_inner) == (4, 128)
    tokens = Tokens(3, seed=9).tokens
    with torch.no_grad():
        assert torch.equal(plain(tokens).logits, whole.model.eval()(tokens).logits)


def test_finished_run_resumed(tmp_path: Path) -> None:
    """Nothing is left to do, and nothing is done."""
    whole = uninterrupted(tmp_path, max_steps=6)
    again = make(tmp_path, max_steps=6, save_strategy="steps", save_steps=1)
    again.train(True)
    assert again.state.global_step == 6
    assert same(weights(again), weights(whole))


class Signals(TrainerCallback):
    """Sends SIGTERM at the end of a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_mid_epoch_of_a_run_by_epochs(tmp_path: Path) -> None:
    """Stopping is no end of an epoch: nothing is evaluated there, so no trigger fires and no random number is drawn."""
    schedule = [entry("widen_mlp", 2, trigger_loss=float("inf"))]
    options = {"eval_strategy": "epoch", "eval_steps": None, "save_strategy": "epoch", "save_steps": 100}
    whole = uninterrupted(tmp_path / "whole", schedule, **options)
    with pytest.raises(RunInterrupted, match="checkpoint-6"):
        make(tmp_path / "run", schedule, callbacks=[Signals()], **options).train()
    resumed = make(tmp_path / "run", schedule, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_end(resumed, whole)
