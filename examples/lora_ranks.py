"""Train with LoRA adapters that start small and get more rank when the loss stands still.

    python examples/lora_ranks.py [--model runs/minimal] [--steps 120] [--output_dir runs/lora]

Adapters of rank 2 sit on every attention. A new model trains around them; of a model that is given, only the adapters
are trained. Raising the rank keeps the function and Adam's memory. What is saved in `merged` is a plain GPT-2, in
`adapters` the base model and PEFT adapters beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from morphing_trainer import LoraArguments, MorphingConfig, MorphingTrainer, add_adapters, save_model
from morphing_trainer.models import load_model, new_model

TEXT = """\
A note to whoever comes next: the smallest change that does the work is the one to make first. If it is not enough,
make it a little larger, and keep what it has learnt so far. Whoever begins with everything has nothing left to add.
"""
LENGTH = 32


def samples(text: str) -> list[dict[str, torch.Tensor]]:
    """Every window of LENGTH bytes; a byte is a token."""
    tokens = torch.tensor(list(text.encode()))
    return [{"input_ids": window, "labels": window} for window in tokens.unfold(0, LENGTH, 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder of a GPT-2 with 256 tokens or more; default: a new, small one")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output_dir", default="runs/lora")
    options = parser.parse_args()

    data = samples(TEXT)
    small = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_layer=2, n_head=4, n_embd=64, bos_token_id=None, eos_token_id=None
    )
    model = load_model(options.model) if options.model else new_model(small, seed=0)
    third = options.steps // 3
    adapters = LoraArguments(
        lora_r=2,
        lora_alpha=4,
        lora_target_modules=["c_attn", "attn.c_proj"],
        lora_freeze_base="all" if options.model else "targets",
    )
    trainer = MorphingTrainer(
        add_adapters(model, adapters),
        MorphingConfig(
            output_dir=options.output_dir,
            overwrite_output_dir=True,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            eval_strategy="steps",
            eval_steps=max(1, third // 4),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=data[:-32],
        eval_dataset=data[-32:],
        schedule=[
            {
                "name": "set_attn_lora_rank",
                "value": rank,
                "when": {"any": [{"plateau": {"window": 3, "slope": 5.0}}, {"waited": third}]},
                "reevaluate": True,
            }
            for rank in (4, 8)
        ],
    )
    trainer.train()

    folder = Path(options.output_dir)
    save_model(trainer.model, folder / "merged")
    save_model(trainer.model, folder / "adapters", merge=False)
    tokens = data[0]["input_ids"][None]
    merged, adapted = (
        AutoModelForCausalLM.from_pretrained(folder / name)(tokens).logits for name in ("merged", "adapters")
    )
    print(f"largest difference between the two: {(merged - adapted).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
