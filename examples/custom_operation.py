"""Operations of your own: one that changes the model, one that changes the settings, used in a schedule.

    python examples/custom_operation.py [--steps 90] [--output_dir runs/custom]

An operation is a small class: its fields are what a schedule may write, and one pure method returns what becomes of the
model's description, or of the settings. Weights, optimizer state, processes and checkpoints follow by themselves.
The how-to is docs/howto/operation.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from transformers import AutoModelForCausalLM, GPT2Config

from morphing_trainer import MorphingConfig, MorphingTrainer, register
from morphing_trainer.errors import OperationError
from morphing_trainer.lineage import ModelSpec, regather
from morphing_trainer.models import new_model
from morphing_trainer.operations import ArchitectureOperation, HyperparameterOperation, Morph
from morphing_trainer.operations.base import Count, Factor
from morphing_trainer.settings import Settings

TEXT = """\
A rule that is written down once can be followed by everybody who comes later. So write down what you want to happen,
not every motion of the hand that makes it happen, and leave the motions to whoever knows them best.
"""
LENGTH = 32


@register
class GrowToParameters(ArchitectureOperation):
    """Repeat the blocks until the model has as many as `value` parameters allow.

    New blocks write zeros to the residual stream, so that the function stays. Source: block expansion as in LLaMA-Pro
    (Wu et al. 2024), with a budget in place of a depth.
    """

    family: ClassVar[str] = "Depth"
    name: Literal["grow_to_parameters"] = "grow_to_parameters"
    value: Count

    def morph(self, spec: ModelSpec, rng: torch.Generator) -> Morph:
        block = spec.restacked([*range(spec.layers), 0]).parameters - spec.parameters
        more = (self.value - spec.parameters) // block
        if more < 1:
            raise OperationError(
                f"the model has {spec.parameters:,} parameters and a block {block:,}: {self.value:,} leave no room; "
                f"give {spec.parameters + block} or more"
            )
        sources = [position % spec.layers for position in range(spec.layers + more)]
        new = spec.restacked(sources)
        lineage = regather(spec, new, sources, range(spec.layers, len(sources)))
        return Morph(new.evolve(lineage.inherit(spec.frozen)), lineage, preserving=True)


@register
class RatePerSample(HyperparameterOperation):
    """Set the peak learning rate to `value` times the root of the batch per device.

    Source: the square-root rule for Adam (Malladi et al. 2022).
    """

    family: ClassVar[str] = "Learning rate"
    name: Literal["rate_per_sample"] = "rate_per_sample"
    value: Factor

    def update(self, settings: Settings, step: int) -> Settings:
        batch = settings.batch_size * settings.grad_accum
        return replace(settings, learning_rate=self.value * batch**0.5)


def samples(text: str) -> list[dict[str, torch.Tensor]]:
    """Every window of LENGTH bytes; a byte is a token."""
    tokens = torch.tensor(list(text.encode()))
    return [{"input_ids": window, "labels": window} for window in tokens.unfold(0, LENGTH, 1)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--output_dir", default="runs/custom")
    options = parser.parse_args()

    data = samples(TEXT)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_layer=1, n_head=4, n_embd=64, bos_token_id=None, eos_token_id=None
    )
    third = options.steps // 3
    trainer = MorphingTrainer(
        new_model(config, seed=0),
        MorphingConfig(
            output_dir=options.output_dir,
            overwrite_output_dir=True,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            eval_strategy="steps",
            eval_steps=max(1, third // 2),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=data[:-32],
        eval_dataset=data[-32:],
        schedule=[
            {"name": "change_batch_size", "value": 4, "max_wait_iters": third},
            {"name": "rate_per_sample", "value": 5e-4, "max_wait_iters": 0},
            {"name": "grow_to_parameters", "value": 250_000, "max_wait_iters": third, "reevaluate": True},
        ],
    )
    trainer.train()
    trainer.save_model()

    plain = AutoModelForCausalLM.from_pretrained(options.output_dir)
    print(f"saved a {type(plain).__name__}: {plain.config.n_layer} layers, {plain.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
