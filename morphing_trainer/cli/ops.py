"""`morph ops [NAME]`: the reference of operations and triggers, from the classes themselves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

_EPILOG = """\
NAME is an operation (or an older name of one), a condition of `when:`, a family such as lora, or `triggers`.

examples:
  morph ops                          every operation with its value, by family, and every condition
  morph ops stack_layers             one of them: idea, fields, example, limits, source
  morph ops triggers                 what may stand under when:
  morph ops plateau --json | jq .    the same for machines

exit codes: 0 shown, 2 there is nothing of that name
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Show; returns the exit code (a name that is none raises a `ConfigError`)."""
    parser = argparse.ArgumentParser(
        prog="morph ops",
        description="Show what a schedule may do: all operations and triggers, or one of them in full.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="what to show in full. Default: a list of all")
    parser.add_argument("--json", action="store_true", help="as JSON: a list, or one object for one NAME")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.reporting.console import is_terminal, make_console
    from morphing_trainer.reporting.reference import everything, looked_up
    from morphing_trainer.reporting.reference_view import listing, reference, section_lines, section_view

    found = everything() if options.name is None else looked_up(options.name)
    alone = len(found) == 1 and options.name is not None
    if options.json:
        told = [facts.to_dict() for facts in found]
        print(json.dumps(told[0] if alone else told, indent=1, ensure_ascii=False, allow_nan=False))
        return 0
    sections = reference(found[0]) if alone else listing(found)
    if is_terminal():
        make_console().print(section_view(sections))
    else:
        print("\n".join(section_lines(sections)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
