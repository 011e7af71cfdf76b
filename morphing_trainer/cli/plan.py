"""`morph plan SCHEDULE`: a run to come, phase by phase: size, cost, memory, when, and advice. No weights, no data."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from morphing_trainer.advice import Rate, advise
from morphing_trainer.cli.arguments import Arguments, parse
from morphing_trainer.cli.command_line import read_command_line
from morphing_trainer.cli.config_files import read_file
from morphing_trainer.cli.describe import BLOCK_SIZE, first_spec, named
from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import ConfigError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.optimizers import class_and_options
from morphing_trainer.outlook import Conditions, Outlook, foresee
from morphing_trainer.planning import played
from morphing_trainer.plans import Plan, load_plan
from morphing_trainer.plans.plan import check_alone
from morphing_trainer.reporting.console import is_terminal, make_console
from morphing_trainer.reporting.outlook import outlook_json, outlook_lines, outlook_table
from morphing_trainer.run.beginning import check_schedule, settings_of
from morphing_trainer.run.learning_rate import STATEFUL, make_scheduler
from morphing_trainer.schedule import Schedule
from morphing_trainer.settings import Settings

_EPILOG = """\
Everything that a run takes may be given, and counts where it matters: --max_steps, --batch_size, --block_size, --bf16,
--optimizer, --lora_r, ... (see morph train --help). Nothing is trained, no weights and no data are read.

examples:
  morph plan configs/schedules/gstack.yaml --model gpt2 --max_steps 20000
  morph plan --config configs/demo.yaml
  morph plan schedule.yaml --config run.yaml --batch_size 64 --json

exit codes: 0 the schedule fits, 2 it does not, or the input is wrong
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Plan; returns the exit code (bad input raises a `MorphError`)."""
    given = sys.argv[1:] if argv is None else list(argv)
    schedule = given.pop(0) if given and not given[0].startswith("-") else None
    parser = argparse.ArgumentParser(
        prog="morph plan",
        usage="%(prog)s [SCHEDULE] [--model MODEL] [--config FILE ...] [--any_argument VALUE ...] [--json]",
        description="Play a schedule through and tell what the run will be like in each phase.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", help="a run, a checkpoint, a model's folder or a Hub id. Default: as the run says")
    parser.add_argument("--json", action="store_true", help="as JSON; memory in bytes")
    options, rest = parser.parse_known_args(given)
    if schedule is not None:
        rest += ["--scaling_schedule_file", schedule]
    if not rest and options.model is None:
        raise ConfigError("morph plan: give a schedule, and --model or --config with the files of a run.")
    # What needs a GPU must not stand in the way of planning for one.
    arguments = parse([*rest, "--use_cpu", "--no_fp16", "--no_bf16", "--report_to", "none"], prog="morph plan")
    spec = first_spec(arguments) if options.model is None else named(options.model).spec
    outlook = _outlook(arguments, spec, _autocast(rest))
    advice = advise(outlook, _rate(arguments.training, outlook.conditions.steps))
    facts = _facts(options.model or arguments.model.model_name_or_path or "a new model", outlook)
    if options.json:
        print(json.dumps(outlook_json(outlook, advice), indent=1))
    elif is_terminal():
        make_console().print(outlook_table(outlook, advice, facts))
    else:
        print("\n".join(outlook_lines(outlook, advice, facts)))
    return 0


def _autocast(argv: Sequence[str]) -> torch.dtype | None:
    """The type of products that the arguments ask for, on the command line or in a file."""
    given, files = read_command_line(argv, "morph plan")
    asked = {name: item.value for rank, path in enumerate(files) for name, item in read_file(path, rank)[0].items()}
    asked |= given
    return torch.bfloat16 if asked.get("bf16") else torch.float16 if asked.get("fp16") else None


def _outlook(arguments: Arguments, spec: ModelSpec, autocast: torch.dtype | None) -> Outlook:
    training = arguments.training
    plan = None if arguments.data.plan is None else load_plan(arguments.data.plan)
    if plan is not None:
        check_alone(plan, training.scaling_schedule_file)
    schedule = plan.schedule if plan and len(plan.schedule) else Schedule.of(training.scaling_schedule_file)
    check_schedule(schedule, training, has_scheduler=False, sharded=False)
    length = arguments.data.block_size or min(BLOCK_SIZE, spec.config.max_position_embeddings)
    if length > spec.config.max_position_embeddings:
        raise ConfigError(
            f"block_size: is {length}, but the model takes at most {spec.config.max_position_embeddings} tokens."
        )
    kind, options = class_and_options(training)

    def make_optimizer(parameters: Iterable[nn.Parameter]) -> Optimizer:
        optimizer: Optimizer = kind(parameters, **options)
        return optimizer

    evaluates = str(getattr(training.eval_strategy, "value", training.eval_strategy)) != "no"
    conditions = Conditions(
        length,
        make_optimizer,
        processes=training.world_size,
        autocast=autocast,
        checkpointing=bool(training.activation_checkpointing),
        evaluates=evaluates,
    )
    settings = settings_of(training, training.learning_rate, 0)
    steps = _steps(training, plan, conditions.tokens_per_step(settings))
    phases = played(
        schedule,
        spec,
        settings_of(training, training.learning_rate, steps or 0),
        seed=training.seed,
        steps=steps,
        evaluates=evaluates,
        analyses=training.analysis_evals is not None,
    )
    return foresee(phases, replace(conditions, steps=steps))


def _steps(training: MorphingConfig, plan: Plan | None, tokens: int) -> int | None:
    """Optimizer steps of the run, None if they depend on the data.

    Args:
        tokens: of a step.
    """
    if plan is None:
        return training.max_steps if training.max_steps > 0 else None
    lengths = [stage.length for stage in plan.stages]
    if any(length.unit == "epochs" for length in lengths):
        return None
    return sum(math.ceil(length.value / (tokens if length.unit == "tokens" else 1)) for length in lengths)


def _rate(training: MorphingConfig, steps: int | None) -> Rate:
    """Share of the peak learning rate that the run's schedule has at a step."""
    kind = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))

    def share(settings: Settings, step: int) -> float | None:
        if steps is None or kind in STATEFUL or step >= steps:
            return None
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        make_scheduler(training, optimizer, settings, steps, max(0, step - settings.lr_anchor))
        return float(optimizer.param_groups[0]["lr"])

    return share


def _facts(model: str, outlook: Outlook) -> list[str]:
    first, conditions = outlook.prospects[0], outlook.conditions
    samples = first.tokens // conditions.length
    batch = f"{samples:,} x {conditions.length:,} = {first.tokens:,} tokens a step"
    steps = "unknown" if conditions.steps is None else f"{conditions.steps:,} steps"
    return [f"model: {model}", f"batch at the start: {batch}", f"length of the run: {steps}"]


if __name__ == "__main__":
    sys.exit(main())
