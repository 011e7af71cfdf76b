"""`morph validate FILES…`: schedules, training plans and run configs, checked before a run needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from morphing_trainer.errors import listed

_EPILOG = """\
What is found is what the file alone shows; what the model shows (a layer that it does not have) `morph plan` tells.
A file is taken for what it looks like: a list of operations is a schedule, a mapping of stages a training plan, other
`name: value` pairs are a run config. Of a config, the schedule and the plan that it names are checked, too.

examples:
  morph validate configs/schedules/*.yaml
  morph validate run.yaml schedule.yaml
  morph validate --as plan stages.yaml
  morph validate *.yaml --json | jq '.[] | select(.ok | not)'

exit codes: 0 all are good, 2 something is wrong: every problem stands on standard error, with its line
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="morph validate",
        description="Check schedules, training plans and run configs: every problem of every file, with its line.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON")
    parser.add_argument(
        "--as", dest="kind", choices=("schedule", "plan", "config"), help="what the files are, if it is not plain"
    )
    parser.add_argument("--json", action="store_true", help="as a JSON list, an object for each file")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.cli.checking import checked
    from morphing_trainer.reporting.console import clean

    found = []
    for name in options.files:
        file = checked(name, options.kind)
        found.append(file)
        if options.json:
            continue
        if file.good:
            facts = ", ".join(part for part in (file.kind, file.facts) if part)
            print(f"{clean(name)}: ok ({facts})", flush=True)
        else:
            print(listed(file.problems), file=sys.stderr)
    if options.json:
        print(json.dumps([file.to_dict() for file in found], indent=1, ensure_ascii=True))
    return 0 if all(file.good for file in found) else 2


if __name__ == "__main__":
    sys.exit(main())
