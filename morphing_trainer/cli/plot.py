"""`morph plot RUN [RUN ...]`: pictures of one run, or of several side by side and against each other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from morphing_trainer.cli.pictures import FORMATS, check_picture
from morphing_trainer.errors import ConfigError, MorphError
from morphing_trainer.reporting.canvas import save
from morphing_trainer.reporting.comparison import comparison_figure
from morphing_trainer.reporting.course import course_figure
from morphing_trainer.reporting.lines import timing_line
from morphing_trainer.reporting.profile import profile_figure
from morphing_trainer.reporting.run_data import AXES, RunData
from morphing_trainer.run.folder import PLOTS
from morphing_trainer.run.reading import read_runs

_EPILOG = """\
examples:
  morph plot runs/demo                                 losses, learning rate, size over steps: runs/demo/plots/steps.png
  morph plot runs/demo --x all --profile               over each axis, and where the time went
  morph plot runs/a runs/b --x tokens -o compare.png   two runs, and the difference to the longer one

A run may be training while it is drawn. On several runs the difference is: run minus the longest run.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; returns the exit code: 0 done, 2 bad input or a file that must not be overwritten."""
    try:
        options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        draw(
            options.runs,
            axes=list(AXES) if "all" in options.x else list(dict.fromkeys(options.x)),
            output=options.output,
            formats=options.format,
            profile=options.profile,
            overwrite=options.overwrite,
        )
    except MorphError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(
    folders: Sequence[str],
    *,
    axes: Sequence[str],
    output: str | None,
    formats: Sequence[str] | None,
    profile: bool,
    overwrite: bool,
) -> list[Path]:
    """Draw all pictures; nothing is written before all of them can be.

    Raises:
        ConfigError: if a folder is no run, a run lacks what an axis needs, or a file stands in the way.
    """
    runs = read_runs(folders)
    figures: dict[str, Callable[[], Figure]] = {}
    for name in axes:
        for run in runs:
            run.places([0.0], AXES[name])  # refused early, whatever is drawn first
        figures[name] = lambda name=name: (  # type: ignore[misc]
            course_figure(runs[0], AXES[name]) if len(runs) == 1 else comparison_figure(runs, AXES[name])
        )
    if profile:
        if missing := [run.name for run in runs if not run.timing]:
            raise ConfigError(
                f"--profile: {', '.join(missing)} has no timing yet: it is written with the statistics "
                "(stats/overall.json), at evaluations, checkpoints and the end."
            )
        figures["profile"] = lambda: profile_figure(runs)
    targets = _targets(list(figures), folders, output, formats)
    _check(targets, overwrite)
    for name, paths in targets.items():
        figure = figures[name]()
        for path in paths:
            try:
                save(figure, path)
            except OSError as error:
                raise ConfigError(f"--output: cannot write {path} ({error.strerror or error}).") from error
            print(path)
    for remark in _remarks(runs):
        print(remark)
    return [path for paths in targets.values() for path in paths]


def _targets(
    names: Sequence[str], folders: Sequence[str], output: str | None, formats: Sequence[str] | None
) -> dict[str, list[Path]]:
    """Picture -> files. A name with a suffix is one format; without, it is the beginning of the names."""
    if output is None:
        stem = Path(folders[0]) / PLOTS if len(folders) == 1 else Path("comparison")
        inside = len(folders) == 1
    else:
        stem = Path(output)
        inside = stem.is_dir() or output.endswith(("/", "\\"))
    suffix = stem.suffix.removeprefix(".").lower()
    if not inside and output is not None and suffix in FORMATS:
        if formats and list(formats) != [suffix]:
            says = ", ".join(formats)
            raise ConfigError(f"--output: {output} is a {suffix} file, --format says {says}; leave one out.")
        base = stem.with_suffix("")
        if len(names) == 1:
            return {names[0]: [stem]}
        return {name: [base.with_name(f"{base.name}-{name}.{suffix}")] for name in names}
    if not inside and output is not None and suffix in ("jpg", "jpeg", "pdf", "gif", "webp", "eps"):
        raise ConfigError(f"--output: {output}: pictures are written as {' or '.join(FORMATS)}; use such a suffix.")
    chosen = list(dict.fromkeys(formats or FORMATS))
    if inside:
        return {name: [stem / f"{name}.{kind}" for kind in chosen] for name in names}
    return {name: [stem.with_name(f"{stem.name}-{name}.{kind}") for kind in chosen] for name in names}


def _check(targets: dict[str, list[Path]], overwrite: bool) -> None:
    """Refuse to write over what is no picture of this command.

    Raises:
        ConfigError: naming the file.
    """
    for path in (path for paths in targets.values() for path in paths):
        check_picture(path, overwrite)


def _remarks(runs: Sequence[RunData]) -> list[str]:
    """What a run does not have, so that nobody looks for it in the picture, and where its time went."""
    remarks = []
    for run in runs:
        lacks = [
            what
            for what, there in (
                ("training loss", run.keys(ending="loss", beginning="loss")),
                ("evaluation", run.keys(beginning="eval_")),
                ("accuracy", run.keys(beginning="eval_", ending="accuracy")),
            )
            if not there
        ]
        if "evaluation" in lacks:
            lacks.remove("accuracy")
        if lacks:
            remarks.append(f"{run.name}: has logged no {' and no '.join(lacks)}")
        if run.timing:
            remarks.append(f"{run.name}: time: {timing_line(run.timing)}")
    return remarks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morph plot",
        description="Draw the course of a run, or compare several: loss, accuracy, learning rate, operations, stages.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (its output_dir), or of a checkpoint")
    parser.add_argument(
        "--x",
        nargs="+",
        choices=[*AXES, "all"],
        default=["steps"],
        help="what to draw over; one picture each. Default: steps",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="file (.png or .svg), folder (ends with /), or start of the names. Default: RUN/plots/, or comparison-*",
    )
    parser.add_argument("--format", nargs="+", choices=FORMATS, help="file formats. Default: both, or PATH's suffix")
    parser.add_argument("--profile", action="store_true", help="also draw where the time went")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is no picture of this command")
    return parser


if __name__ == "__main__":
    sys.exit(main())
