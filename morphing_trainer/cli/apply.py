"""`morph apply MODEL_IN OPERATION... --out MODEL_OUT`: operations on a model on disk or the Hub, without training."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morphing_trainer.operations import Operation

_EPILOG = """\
operations:
  name=value        widen_mlp=2, "stack_layers=[0, 0, 1, 1]", "set_layer_lora_rank=[attn.2, 16]", freeze_layer=wte
  name              merge_lora_weights
  YAML or JSON      '{name: stack_layers, value: 2, init: identity}'
  They are done in their order. Those on learning rates, batches and the like belong into the schedule of a run.

the result:
  GPT2LMHeadModel.from_pretrained(MODEL_OUT) loads it; where there are adapters, the base model and, beside it, the
  adapters as PEFT saves them. What is frozen is not kept in such a folder. It appears when it is complete, with a
  manifest of its hashes. Weights keep their types.

  --optimizer adds optimizer.pt, with the parameters' names; the learning-rate scheduler is not carried:
    import torch
    from morphing_trainer.models import load_model
    model = load_model("MODEL_OUT")
    saved, named = torch.load("MODEL_OUT/optimizer.pt"), dict(model.named_parameters())
    groups = [{"params": [(name, named[name]) for name in group["param_names"]]} for group in saved["param_groups"]]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(saved)

memory:
  Weights are read, computed and written one by one: about the largest tensor and what it descends from. The optimizer's
  state is in memory as a whole where it changes. The check needs each model as a whole, one after the other: give
  --no_check for models that do not fit.

the check:
  Both models compute the logits of the same random tokens. Where every operation keeps the function, they have to agree
  within rounding (10 times the precision of the weights' type, 1e-4 at least, of the logits' spread); else nothing is
  written. Where one does not, both losses are told.

examples:
  morph apply openai-community/gpt2 widen_mlp=2 --out models/wide
  morph apply runs/a '{name: stack_layers, value: 2, init: identity}' --out models/deep
  morph apply runs/a/checkpoint-500 widen_mlp=2 stack_layers=2 --optimizer --out models/grown
  morph apply runs/lora --schedule merge.yaml --merge --out models/plain

exit codes: 0 done; 2 nothing was written: the input is wrong, the disk is full, or the function has not stayed
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Apply; returns the exit code (bad input raises a `MorphError`)."""
    parser = _parser()
    options = parser.parse_intermixed_args(sys.argv[1:] if argv is None else list(argv))

    from transformers.utils import logging as transformers_logging

    from morphing_trainer.errors import ConfigError
    from morphing_trainer.offline.applying import apply
    from morphing_trainer.offline.place import check_place
    from morphing_trainer.offline.source import open_source
    from morphing_trainer.reporting.applied import applied_lines, applied_view
    from morphing_trainer.reporting.console import is_terminal, make_console

    if bool(options.operation) == bool(options.schedule):
        raise ConfigError("morph apply: give operations, such as widen_mlp=2, or --schedule with a file of them.")
    out = Path(options.out).expanduser()
    given = Path(options.model).expanduser()
    check_place(out, given if given.is_dir() else None, overwrite=options.overwrite)
    operations = (
        scheduled(options.schedule) if options.schedule else [read_operation(text) for text in options.operation]
    )
    transformers_logging.disable_progress_bar()
    source = open_source(options.model, options.revision, optimizer=options.optimizer)
    with _ended_by_signal():
        done = apply(
            source,
            operations,
            out,
            seed=options.seed,
            merge=options.merge,
            optimizer=options.optimizer,
            check=not options.no_check,
            overwrite=options.overwrite,
        ).to_dict()
    if options.json:
        print(json.dumps(done, indent=1))
    elif is_terminal():
        make_console().print(applied_view(done))
    else:
        print("\n".join(applied_lines(done)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morph apply",
        usage="%(prog)s MODEL_IN OPERATION ... --out MODEL_OUT [options]",
        description="Apply operations to a model on disk or on the Hub, and write the result as a model's folder.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_IN", help="a model's folder, a run, a checkpoint of one, or a Hub id")
    parser.add_argument("operation", metavar="OPERATION", nargs="*", help="name=value, name, or YAML (see below)")
    parser.add_argument("--out", metavar="MODEL_OUT", required=True, help="the folder to write; it must not exist")
    told = "all operations of a schedule that changes nothing but the model, whatever their triggers"
    parser.add_argument("--schedule", metavar="FILE", help=told)
    parser.add_argument("--optimizer", action="store_true", help="the optimizer's state too, of a checkpoint of a run")
    parser.add_argument("--merge", action="store_true", help="merge adapters into their weights in the end")
    parser.add_argument("--seed", type=int, default=0, help="of random choices, as the seed of a run. Default: 0")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    parser.add_argument("--no_check", action="store_true", help="do not load the models and compare what they compute")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in MODEL_OUT")
    parser.add_argument("--json", action="store_true", help="what was done as one JSON object")
    return parser


def read_operation(text: str) -> Operation:
    """The operation that a person writes as `name=value`, `name`, or a mapping in YAML.

    Raises:
        OperationError: if it is not valid.
    """
    from morphing_trainer.documents import DocumentError, read_text
    from morphing_trainer.errors import OperationError
    from morphing_trainer.functional import parsed

    name, equals, value = (part.strip() for part in text.partition("="))
    is_mapping = text.lstrip().startswith("{")
    where = f"operation {text[:60]!r}"
    try:
        document = read_text(text if is_mapping else value or "null", where)
        if document.problems:
            raise OperationError("\n".join(map(str, document.problems)))
        if is_mapping:
            return parsed(document.data)
        if not name or (equals and not value):
            raise OperationError(f"{where}: write name=value, name, or '{{name: ..., value: ...}}'")
        return parsed({"name": name, "value": document.data} if equals else {"name": name})
    except DocumentError as error:
        raise OperationError(f"{error}; write name=value, name, or '{{name: ..., value: ...}}'") from error


def scheduled(path: str) -> list[Operation]:
    """The operations of a schedule that are not marked `completed`.

    Raises:
        ScheduleError, DocumentError: if it cannot be read.
        ConfigError: if there are none, one does not change the model, or it goes on without end.
    """
    from morphing_trainer.errors import ConfigError
    from morphing_trainer.operations import ArchitectureOperation
    from morphing_trainer.schedule import Schedule

    schedule = Schedule.load(path)
    if schedule.cycle:
        raise ConfigError(f"--schedule: {path} repeats operations for as long as a run lasts; give their number.")
    operations = [entry.operation for entry in schedule.entries if not entry.completed]
    if not operations:
        raise ConfigError(f"--schedule: {path} has no operation that is still to be done.")
    for index, entry in enumerate(schedule.entries):
        if not entry.completed and not isinstance(entry.operation, ArchitectureOperation):
            raise ConfigError(
                f"{schedule.where(index)}: changes how a model is trained, and a model's folder says nothing of that; "
                "give the operations that change the model one by one, such as widen_mlp=2, in place of --schedule"
            )
    return operations


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Let a SIGTERM end the work as Ctrl-C does, so that what has been written is removed."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    old = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


if __name__ == "__main__":
    sys.exit(main())
