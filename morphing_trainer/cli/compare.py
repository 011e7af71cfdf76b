"""`morph compare RUN RUN ...`: which of several runs reached a loss first, and how they stand at equal cost."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

_AXES = ("steps", "tokens", "seconds", "flops")
_EPILOG = """\
Losses are compared where all runs have come: at as many steps, tokens, seconds of training and floating-point
operations as the shortest has. Between two evaluations the loss is taken to go in a straight line. FLOPs are those of
training, counted from every model that the run had, head and attention included, without what is frozen; evaluations
and what a run has undone are not counted.

exit codes: 0 done, 2 bad input

examples:
  morph compare runs/grown runs/plain                  tables; the target is the lowest loss that both have reached
  morph compare runs/* --at-loss 4.5 -o compare.png    which came to 4.5 first, and a picture
  morph compare runs/a runs/b --x flops --json         for machines

A run may be training while it is compared. For all its curves over one axis: morph plot RUN RUN ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code (bad input raises a `MorphError`)."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.cli.pictures import FORMATS, check_picture
    from morphing_trainer.errors import ConfigError
    from morphing_trainer.reporting.canvas import save
    from morphing_trainer.reporting.console import is_terminal, make_console
    from morphing_trainer.reporting.contest import contest, to_dict
    from morphing_trainer.reporting.contest_figure import contest_figure
    from morphing_trainer.reporting.contest_tables import contest_lines, contest_view
    from morphing_trainer.run.contestants import chosen_loss, contestants
    from morphing_trainer.run.history import plain

    if len(options.runs) < 2:
        raise ConfigError(f"morph compare: give two runs or more. Of one: morph status {options.runs[0]}")
    if options.at_loss is not None and not math.isfinite(options.at_loss):
        raise ConfigError("--at-loss: must be a finite number.")
    output = None if options.output is None else Path(options.output)
    if output is not None:
        if output.suffix.removeprefix(".").lower() not in FORMATS:
            raise ConfigError(f"--output: {output}: pictures are written as {' or '.join(FORMATS)}; use such a suffix.")
        check_picture(output, options.overwrite, "morph compare")
    axes = list(dict.fromkeys(options.x))
    runs, sizes, remarks = contestants(options.runs, flops="flops" in axes)
    loss = chosen_loss(runs, options.loss, remarks)
    found = contest(runs, axes, loss, options.at_loss, sizes=sizes, remarks=remarks)
    if options.json:
        print(json.dumps(plain(to_dict(found)), indent=1, allow_nan=False))
    elif is_terminal():
        make_console().print(contest_view(found))
    else:
        print("\n".join(contest_lines(found)))
    if output is not None:
        try:
            save(contest_figure(found, runs), output)
        except OSError as error:
            raise ConfigError(f"--output: cannot write {output} ({error.strerror or error}).") from error
        print(output, file=sys.stderr if options.json else sys.stdout)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morph compare",
        description="Tell which of several runs reached a loss first, by what ratio, and their losses at equal cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs (their output_dir), or of checkpoints")
    parser.add_argument("--at-loss", type=float, metavar="X", help="the target. Default: the lowest that all reached")
    parser.add_argument("--x", nargs="+", choices=_AXES, default=list(_AXES), help="by what. Default: all four")
    parser.add_argument(
        "--loss",
        choices=("evaluation", "training"),
        help="which loss. Default: evaluation, or training where fewer than two runs evaluate",
    )
    parser.add_argument("-o", "--output", metavar="PICTURE", help="also draw: a file that ends with .png or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is no picture of this command")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
