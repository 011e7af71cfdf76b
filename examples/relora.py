"""ReLoRA (Lialin et al. 2023): many small adapters, one after the other, add up to one large change.

    python examples/relora.py [--steps 240] [--rank 2] [--merges 3] [--output_dir runs/relora]

A small model is trained twice from the same start, with adapters of the same rank on every attention: once the
adapters stay, once they are merged and start anew, with a new warm-up of the learning rate. What one adapter adds to a
weight has at most its own rank; the sum of several has more. The script prints both, and the losses.

On a text as small as this one, the loss says little: both learn it by heart. The ranks are the point.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import GPT2Config, PreTrainedModel

from morphing_trainer import LoraArguments, MorphingConfig, MorphingTrainer, add_adapters, without_adapters
from morphing_trainer.models import new_model

TEXT = """\
What is written once on a slate is soon full, and whoever would write more must wipe some of it away. Whoever copies the
slate into a book each evening, and begins the next day with a clean one, can write a book with nothing but a slate.
"""
LENGTH = 32


def samples(text: str) -> list[dict[str, torch.Tensor]]:
    """Every window of LENGTH bytes; a byte is a token."""
    tokens = torch.tensor(list(text.encode()))
    return [{"input_ids": window, "labels": window} for window in tokens.unfold(0, LENGTH, 1)]


def start() -> PreTrainedModel:
    """The model that both runs begin with."""
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_layer=2, n_head=4, n_embd=64, bos_token_id=None, eos_token_id=None
    )
    return new_model(config, seed=0)


def restarts(steps: int, merges: int) -> list[dict[str, Any]]:
    """A schedule that merges the adapters `merges` times and starts them anew, in equal distances.

    `configs/schedules/relora.yaml` says the same for long runs, with `repeat: end`.
    """
    once = [
        {"name": "reset_lr_schedule", "max_wait_iters": steps // (merges + 1)},
        {"name": "merge_lora_weights", "max_wait_iters": 0, "reevaluate": True},
    ]
    return [{"repeat": merges, "operations": once}]


def train(folder: str, rank: int, steps: int, schedule: list[dict[str, Any]]) -> MorphingTrainer:
    data = samples(TEXT)
    adapters = LoraArguments(lora_r=rank, lora_alpha=2 * rank, lora_target_modules=["c_attn"])
    trainer = MorphingTrainer(
        add_adapters(start(), adapters),
        MorphingConfig(
            output_dir=folder,
            overwrite_output_dir=True,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            warmup_steps=max(1, steps // 40),
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=max(1, steps // 4),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=data[:-32],
        eval_dataset=data[-32:],
        schedule=schedule,
    )
    trainer.train()
    return trainer


def changed_rank(trainer: MorphingTrainer) -> int:
    """The largest rank of what a run has added to an attention weight, up to rounding."""
    now, before = without_adapters(trainer.model).state_dict(), start().state_dict()
    names = [name for name in before if name.endswith("attn.c_attn.weight")]
    return max(int(torch.linalg.matrix_rank(now[name] - before[name], rtol=1e-3)) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--merges", type=int, default=3)
    parser.add_argument("--output_dir", default="runs/relora")
    options = parser.parse_args()

    runs = {
        "one adapter": train(f"{options.output_dir}/one", options.rank, options.steps, []),
        f"{options.merges + 1} adapters, merged": train(
            f"{options.output_dir}/merged", options.rank, options.steps, restarts(options.steps, options.merges)
        ),
    }
    found = {name: (trainer.evaluate()["eval_loss"], changed_rank(trainer)) for name, trainer in runs.items()}
    for name, (loss, rank) in found.items():
        print(f"{name}: loss {loss:.2f}, rank of the change {rank}")


if __name__ == "__main__":
    main()
