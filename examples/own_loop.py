"""Growing a model in a training loop of one's own: `morph` returns the new model and the new optimizer.

    python examples/own_loop.py [--steps 60]

Put the call between two steps, after `optimizer.step()`. The optimizer keeps its class, its param groups and its
memory; a learning-rate scheduler is bound to the old optimizer and must be made anew (here: none).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from morphing_trainer import morph

VOCABULARY, LENGTH = 64, 16

PLAN: list[dict[str, Any]] = [
    {"name": "stack_layers", "value": 2, "init": "identity"},
    {"name": "widen_mlp", "value": 2},
    {"name": "freeze_layer", "value": ["wte", "wpe"]},
]


def batch(size: int, generator: torch.Generator) -> torch.Tensor:
    """(size, LENGTH) token ids: lines with a start and a stride, so that there is something to learn."""
    start = torch.randint(VOCABULARY, (size, 1), generator=generator)
    stride = torch.randint(1, 5, (size, 1), generator=generator)
    return (start + stride * torch.arange(LENGTH)) % VOCABULARY


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_layer=2, n_head=4, n_embd=64, bos_token_id=None, eos_token_id=None
    )
    model: PreTrainedModel = GPT2LMHeadModel(config)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # A quarter of the steps, then an operation, and so on.
    due = {(index + 1) * steps // (len(PLAN) + 1): operation for index, operation in enumerate(PLAN)}

    for step in range(1, steps + 1):
        model.train()
        tokens = batch(16, generator)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        if operation := due.get(step):
            model, grown, record = morph(model, operation, optimizer=optimizer, seed=step)
            optimizer = grown or optimizer  # it is None only where none was given
            before, after = record.before, record.after
            print(
                f"step {step}: loss {loss.item():.3f}, {record.operation}: "
                f"{before['layers']} x {before['mlp']} -> {after['layers']} x {after['mlp']}, "
                f"{after['trainable']:,} of {after['parameters']:,} parameters trained, moments {dict(record.moments)}"
            )
    print(f"step {steps}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
