"""`morph schema`: the JSON Schema of schedules or training plans."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from morphing_trainer.errors import ConfigError
from morphing_trainer.schemas import FILES

_EPILOG = """\
Editors that know JSON Schema (VS Code with its YAML extension) complete names, fields and values, show what they mean,
and mark mistakes. Name the schema in the first line of a file, by a path from there:

  # yaml-language-server: $schema=schedule.schema.json

examples:
  morph schema -o schedule.schema.json
  morph schema --for plan -o plan.schema.json
  morph schema | jq '."$defs".stack_layers'

exit codes: 0 written, 2 it could not be
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write; returns the exit code (bad input raises a `ConfigError`)."""
    parser = argparse.ArgumentParser(
        prog="morph schema",
        description="Write the JSON Schema (draft 2020-12) of schedules or of training plans.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--for", dest="kind", choices=tuple(FILES), default="schedule", help="default: schedule")
    parser.add_argument("-o", "--output", metavar="FILE", help="write it there. Default: to standard output")
    parser.add_argument("--overwrite", action="store_true", help="also if there is another file of that name")
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))

    text = FILES[options.kind].read_text(encoding="utf-8")
    if options.output is None:
        print(text, end="")
        return 0
    _write(Path(options.output), text, options.overwrite)
    print(f"wrote {options.output}", file=sys.stderr)
    return 0


def _write(path: Path, text: str, overwrite: bool) -> None:
    """Write a file.

    Raises:
        ConfigError: if there is something else, or it cannot be written.
    """
    try:
        if path.is_file() and not overwrite and path.read_bytes() != text.encode():
            raise ConfigError(f"morph schema: {path} is there already and says something else; give --overwrite")
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        what = getattr(error, "strerror", None) or error
        raise ConfigError(f"morph schema: {str(path)[:200]} cannot be written ({what}); name another file") from error


if __name__ == "__main__":
    sys.exit(main())
