"""`morph describe MODEL`: what a model is made of, and what of it is trained; no weights are read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.cli.arguments import Arguments, parse
from morphing_trainer.errors import CheckpointError, ConfigError, ModelError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.lora import add_adapters
from morphing_trainer.models import describe_model, scratch_config
from morphing_trainer.optimizers import decayed
from morphing_trainer.reading import read_json
from morphing_trainer.reporting.anatomy import anatomy, anatomy_lines, anatomy_table
from morphing_trainer.reporting.console import is_terminal, make_console
from morphing_trainer.run.bundle import STATE
from morphing_trainer.run.folder import MODEL
from morphing_trainer.run.freezing import frozen_but

BLOCK_SIZE = 128
"""Tokens of a sample, where nobody says."""


class Described(NamedTuple):
    """A model's description, the parameters that decay, and where that is from."""

    spec: ModelSpec
    decays: Collection[str]
    facts: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Describe a model; returns the exit code (bad input raises a `MorphError`)."""
    parser = argparse.ArgumentParser(
        prog="morph describe",
        usage="%(prog)s MODEL | --config FILE ... [--any_argument VALUE ...]  [--json]",
        description="Show a model's components, their parameters, what of them is trained and what decays.",
        epilog="Components have the names by which a schedule and train_only call them. No weights are read.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a run, a checkpoint, a model's folder, or a Hub id")
    parser.add_argument("--config", nargs="+", metavar="FILE", help="the model that a run with these files begins with")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--json", action="store_true", help="as JSON, every component by itself")
    given = sys.argv[1:] if argv is None else list(argv)
    of_run = any(item.partition("=")[0] == "--config" for item in given) and not {"-h", "--help"} & {*given}
    options = argparse.Namespace(json="--json" in given) if of_run else parser.parse_args(given)
    if of_run:  # its arguments are those of a run, and one more
        found = configured([item for item in given if item != "--json"])
    elif options.model is None:
        raise ConfigError("morph describe: give a model, or --config with the files of a run.")
    else:
        found = named(options.model, options.revision)
    if options.json:
        print(json.dumps({**found.facts, **anatomy(found.spec, found.decays)}, indent=1))
        return 0
    facts = [f"{name}: {value}" for name, value in found.facts.items()]
    if is_terminal():
        make_console().print(anatomy_table(found.spec, found.decays, facts))
    else:
        print("\n".join(anatomy_lines(found.spec, found.decays, facts)))
    return 0


def named(model: str, revision: str | None = None) -> Described:
    """The model of a run (its newest checkpoint, else its result), of a checkpoint, a folder or the Hub.

    Raises:
        ModelError, CheckpointError: if there is none, or it cannot be read.
    """
    folder = Path(model)
    if folder.is_dir() and not (folder / STATE).is_file():
        saved = [found for found in checkpoints(folder) if (found / STATE).is_file()]
        result = folder / MODEL
        folder = saved[0] if saved else result if result.is_dir() else folder
    if (folder / STATE).is_file():
        return _checkpointed(folder)
    spec = describe_model(str(folder) if folder.is_dir() else model, revision=revision)
    return Described(spec, decayed(spec), {"source": str(folder)})


def configured(options: Sequence[str]) -> Described:
    """The model that a run with these arguments begins with.

    Raises:
        ConfigError, ModelError: as the run would.
    """
    # What needs a GPU, or is of no interest here, must not stand in the way.
    here = ["--use_cpu", "--no_fp16", "--no_bf16", "--report_to", "none"]
    arguments = parse([*options, *here], prog="morph describe")
    training, spec = arguments.training, first_spec(arguments)
    facts = {"source": " ".join(options)}
    if arguments.model.model_name_or_path is None:
        facts["vocabulary"] = f"{arguments.model.vocab_size}, or what the tokenizer has"
    facts |= {"optimizer": str(training.optimizer or training.optim), "weight decay": f"{training.weight_decay:g}"}
    return Described(spec, decayed(spec), facts)


def first_spec(arguments: Arguments) -> ModelSpec:
    """The description of the model that a run with these arguments begins with.

    Raises:
        ConfigError, ModelError: as the run would.
    """
    chosen, training = arguments.model, arguments.training
    if chosen.model_name_or_path is not None:
        spec = describe_model(chosen.model_name_or_path, revision=chosen.model_revision)
    else:
        block_size = arguments.data.block_size or BLOCK_SIZE
        spec = ModelSpec(scratch_config(chosen, chosen.vocab_size, block_size, None))
    # On the meta device, nothing is computed.
    spec = ModelSpec.of(add_adapters(spec.build("meta"), arguments.lora, training.seed))
    return frozen_but(spec, training.train_only) if training.default_freeze else spec


def _checkpointed(folder: Path) -> Described:
    """Of a checkpoint: its own description, and the groups that its optimizer has."""
    try:
        data = read_json(folder / STATE)
        state, arguments = data["state"], data["arguments"]
        spec = ModelSpec.from_dict(state["spec"])
        decays = {name for name, group in state["groups"].items() if group == 0}
        facts = {"source": str(folder), "step": str(state["step"])}
        facts |= {"optimizer": str(arguments.get("optimizer") or arguments["optim"])}
        facts |= {"weight decay": f"{float(arguments['weight_decay']):g}"}
    except ModelError as error:
        raise ModelError(f"{folder / STATE}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{folder / STATE}: is not one that this library wrote ({error!r})") from error
    return Described(spec, decays, facts)


if __name__ == "__main__":
    sys.exit(main())
