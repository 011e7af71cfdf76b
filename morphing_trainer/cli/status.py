"""`morph status RUN`: where a run stands, finished or training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """\
exit codes:
  0  it is training, or has come to its end: nothing to do
  1  it has stopped before its end (interrupted, failed, killed, not begun), or --verify has found damage: look at it
  2  bad input: there is no such run

examples:
  morph status runs/demo                               how it stands, and what to do next
  morph status runs/demo --json | jq .evaluation.loss  one figure
  morph status runs/demo > /dev/null; [ $? = 1 ] && sbatch job.sh

A run may be training: nothing is changed, and its lock is not touched. Figures are those of its last log line.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Tell; returns the exit code (bad input raises a `MorphError`)."""
    parser = argparse.ArgumentParser(
        prog="morph status",
        description="Show where a run stands: step, losses, size, operations, checkpoints, time left, what to do next.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run (its output_dir)")
    parser.add_argument("--verify", action="store_true", help="hash every file of all checkpoints, which takes a while")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.reporting.console import is_terminal, make_console
    from morphing_trainer.reporting.standing import standing_lines, standing_view
    from morphing_trainer.run.history import plain
    from morphing_trainer.run.looking import standing

    found = standing(Path(options.run), verified=options.verify)
    if options.json:
        print(json.dumps(plain(found.to_dict()), indent=1, allow_nan=False))
    elif is_terminal():
        make_console().print(standing_view(found))
    else:
        print("\n".join(standing_lines(found)))
    return 0 if found.well else 1


if __name__ == "__main__":
    sys.exit(main())
