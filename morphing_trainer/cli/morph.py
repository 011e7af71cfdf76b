"""`morph`: one sub-command per thing that a person does. Each is imported when it is asked for."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence

from morphing_trainer import __version__
from morphing_trainer.cli.importing import imported
from morphing_trainer.errors import MorphError

COMMANDS = {
    "train": "train a model, as train.py does (for several processes: accelerate launch train.py)",
    "plan": "play a schedule through without training: sizes, cost, memory, times, advice",
    "validate": "check schedules, training plans and run configs: every problem, with its line",
    "ops": "show what a schedule may do: all operations and triggers, or one of them in full",
    "schema": "write the JSON Schema of schedules or plans, for completion and help in editors",
    "data": "prepare a data set once, to train from it anywhere; look at its samples",
    "apply": "apply operations to a model on disk or on the Hub, without training",
    "sample": "let a model write: of a run, a checkpoint, or the Hub",
    "status": "tell where a run stands, also while it trains, and what to do next",
    "journal": "show what happened in a run: every operation, and what it did",
    "compare": "tell which of several runs reached a loss first, by steps, tokens, time and computation",
    "report": "write one page about a run: curves, pictures of the network, texts, journal, config",
    "plot": "draw the course of one run, or compare several",
    "push": "put the model of a run on the Hub, with a card that tells how it grew",
    "describe": "show what a model is made of, and what of it is trained",
}
"""Sub-command -> what it is for. Each is the module of that name in this package, with `main(argv) -> exit code`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the process's exit code: 0 done, 2 bad input, else as the sub-command says."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name == "--version":
        print(f"morph {__version__}")
        return 0
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it is one of {', '.join(COMMANDS)}"
        print(f"error: morph: no such command {name!r}{hint}", file=sys.stderr)
        return 2
    try:
        code = imported(f"morphing_trainer.cli.{name}").main(rest)
    except MorphError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `morph ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        told = f"{str(error.filename)[:40]}... is too long for a path; give a shorter one"
        print(f"error: morph {name}: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return int(code)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    more = ["More: morph COMMAND --help", "Version: morph --version"]
    return "\n".join(["usage: morph COMMAND ...", "", "commands:", *lines, "", *more])


if __name__ == "__main__":
    sys.exit(main())
