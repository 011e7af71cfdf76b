"""`morph report RUN`: one page about a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """\
The page needs nothing beside it and no network: send it, or keep it. It shows how the run ended, its figures, losses
with every operation and stage, the network as it grew, learning rate, batch size, speed, memory, where the time went,
what the model wrote, the journal, the schedule and the config. A run writes it by itself when it ends, well or not.

A run may be training, or be damaged: what is sound is shown, and what is not is said.

exit codes:
  0  written
  2  bad input: there is no such run, or the file that it would replace is no report

examples:
  morph report runs/demo                     writes runs/demo/report.html
  morph report runs/demo -o demo.html        writes it elsewhere
  xdg-open "$(morph report runs/demo)"       writes it and opens it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write; returns the exit code (bad input raises a `MorphError`)."""
    parser = argparse.ArgumentParser(
        prog="morph report",
        description="Write one HTML page about a run, finished or training, and print where it is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run (its output_dir)")
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.run.reporting import write_report

    print(write_report(Path(options.run), Path(options.output) if options.output is not None else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
