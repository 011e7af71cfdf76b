"""A `transformers.Trainer` script with two names changed and a schedule added.

    python examples/minimal_trainer.py [--steps 120] [--output_dir runs/minimal]

What was `Trainer` is `MorphingTrainer`, what was `TrainingArguments` is `MorphingConfig`. The model starts with one
block and ends with four, twice as wide; Adam's memory goes along. What it saves is a plain GPT-2.
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from morphing_trainer import MorphingConfig, MorphingTrainer

TEXT = """\
Tall oaks from little acorns grow. Large streams from little fountains flow. A small seed holds the plan of the whole
tree, yet it does not grow every branch at once: first a root, then a stem, then the leaves that pay for the rest.
What is learnt early is kept, and what is new begins where the old has come to. So it may be with machines that learn:
begin with little, grow when growing helps, and never throw away what was paid for.
"""
LENGTH = 32


def samples(text: str) -> list[dict[str, torch.Tensor]]:
    """Every window of LENGTH bytes; a byte is a token."""
    tokens = torch.tensor(list(text.encode()))
    return [{"input_ids": window, "labels": window} for window in tokens.unfold(0, LENGTH, 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output_dir", default="runs/minimal")
    options = parser.parse_args()

    data = samples(TEXT)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=256, n_positions=LENGTH, n_layer=1, n_head=4, n_embd=64, bos_token_id=None, eos_token_id=None
        )
    )
    third = options.steps // 3
    trainer = MorphingTrainer(
        model,
        MorphingConfig(
            output_dir=options.output_dir,
            overwrite_output_dir=True,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            eval_strategy="steps",
            eval_steps=max(1, third // 2),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=data[:-32],
        eval_dataset=data[-32:],
        schedule=[
            {"name": "stack_layers", "value": 4, "init": "identity", "trigger_loss": 3.0, "max_wait_iters": third},
            {"name": "widen_mlp", "value": 2, "trigger_loss": 2.8, "max_wait_iters": third, "reevaluate": True},
        ],
    )
    trainer.train()
    trainer.save_model()

    plain = AutoModelForCausalLM.from_pretrained(options.output_dir)
    print(f"saved a {type(plain).__name__}: {plain.config.n_layer} layers, MLP {plain.config.n_inner} wide")


if __name__ == "__main__":
    main()
