"""Make a trained GPT-2 larger without changing what it computes, and save it as a plain GPT-2.

    python examples/grow_from_checkpoint.py gpt2 grown-gpt2
    python examples/grow_from_checkpoint.py path/to/a/gpt2/folder grown --depth 1.5 --width 2

The new blocks are identities and the new MLP units share the output of old ones, so the logits stay the same; the
difference that is printed is rounding. Train the result like any GPT-2: with `Trainer`, with `MorphingTrainer`, or
with a loop of your own.
"""

from __future__ import annotations

import argparse
import sys

import torch
from transformers import AutoModelForCausalLM

from morphing_trainer import MorphError, morph
from morphing_trainer.models import load_model


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", help="a GPT-2 folder, or the id of one on the Hub")
    parser.add_argument("output_dir", help="where the grown model goes")
    parser.add_argument("--depth", type=float, default=2, help="factor above 1; depth times it must be whole")
    parser.add_argument("--width", type=float, default=2, help="factor above 1 for the MLP")
    options = parser.parse_args()

    model = load_model(options.checkpoint)
    tokens = torch.arange(min(64, model.config.n_positions)) % model.config.vocab_size
    before = model(tokens[None]).logits

    grown = morph(
        model, {"name": "stack_layers", "value": options.depth, "init": "identity", "order": "interleave"}
    ).model
    grown = morph(grown, {"name": "widen_mlp", "value": options.width}).model
    grown.save_pretrained(options.output_dir)

    # As anybody would load it, without this library.
    plain = AutoModelForCausalLM.from_pretrained(options.output_dir)
    difference = (plain(tokens[None]).logits - before).abs().max() / before.abs().max()
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, plain)]
    print(f"{options.checkpoint}: {sizes[0]:,} -> {sizes[1]:,} parameters, {plain.config.n_layer} layers")
    print(f"largest difference of a logit, relative: {difference:.1e}")
    if difference > 1e-4:
        sys.exit("the grown model computes something else; please report this")


if __name__ == "__main__":
    try:
        main()
    except MorphError as error:
        sys.exit(f"error: {error}")
