"""`morph journal RUN`: what happened in a run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

_EPILOG = """\
It shows what counts: what a run had done beyond a checkpoint that it went on from, and did again, stands there once.
An operation that its guard has undone is marked so.

exit codes:
  0  done
  1  some of the journal is damaged; what is sound is shown
  2  bad input: there is no such run

examples:
  morph journal runs/demo
  morph journal runs/demo --all                            resumes, stages and endings, too
  morph journal runs/demo --json | jq '{step, operation}'  one JSON object in each line
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Show; returns the exit code (bad input raises a `MorphError`)."""
    parser = argparse.ArgumentParser(
        prog="morph journal",
        description="Show every operation of a run: when and why, what it changed, loss before and after, moments.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run (its output_dir), or of a checkpoint")
    parser.add_argument("--all", action="store_true", help="all events, also those that are no operations")
    parser.add_argument("--json", action="store_true", help="JSON lines: an object for each operation, or event")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.reporting.console import clean, is_terminal, make_console
    from morphing_trainer.reporting.journal import events_lines, events_table, journal_lines, journal_table
    from morphing_trainer.run.changes import changes_of
    from morphing_trainer.run.history import plain
    from morphing_trainer.run.salvage import salvaged_journal

    found = salvaged_journal(Path(options.run))
    changes = changes_of(found.events, found.told)
    if options.json:
        for item in found.events if options.all else [change.to_dict() for change in changes]:
            print(json.dumps(plain(item), allow_nan=False))
    elif is_terminal():
        make_console().print(events_table(found.events) if options.all else journal_table(changes))
    else:
        print("\n".join(events_lines(found.events) if options.all else journal_lines(changes)))
    for fault in found.faults:
        print(f"damaged: {clean(fault)}", file=sys.stderr)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
