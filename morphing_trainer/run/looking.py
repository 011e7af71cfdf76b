"""Finding out where a run stands, also while it trains: from its folder, in which nothing is changed or locked."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from morphing_trainer.checkpoint import MANIFEST, check_listed, checkpoints, verify
from morphing_trainer.errors import CheckpointError, ConfigError
from morphing_trainer.run.folder import HISTORY, JOURNAL, MODEL, STATS
from morphing_trainer.run.holding import holder
from morphing_trainer.run.journal import Event
from morphing_trainer.run.progress import PROGRESS
from morphing_trainer.run.salvage import Remains, number, salvaged, whole
from morphing_trainer.run.standing import EMPTY, FAILED, FINISHED, INTERRUPTED, KILLED, RUNNING, Saved, Standing, advice

_ENDINGS = {"end": FINISHED, "interrupted": INTERRUPTED, "failed": FAILED, "guard_failed": FAILED}
_BEGINNINGS = ("start", "resume", "rolled_back", "returned")
_RECENT = 20
"""Log lines that tell the present speed."""


def standing(folder: Path, *, verified: bool = False) -> Standing:
    """Where the run in `folder` stands.

    Args:
        verified: hash the files of all checkpoints.

    Raises:
        ConfigError: if it is no run.
    """
    check_no_checkpoint(folder)
    process = holder(folder)  # before its files are read: if it ends meanwhile, they tell so
    return standing_of(folder, salvaged(folder), process, verified=verified)


def check_no_checkpoint(folder: Path) -> None:
    """Raises ConfigError if this is the folder of a checkpoint: it says of which run."""
    if (folder / MANIFEST).is_file() and folder.name.startswith("checkpoint-"):
        raise ConfigError(f"{folder}: is a checkpoint; give its run, {folder.resolve().parent}.")


def standing_of(folder: Path, remains: Remains, process: int | None, *, verified: bool = False) -> Standing:
    """The same, of what has been read of it, and the process that trains in it."""
    found = Standing(str(folder), process=process, faults=remains.faults, verified=verified)
    found.state, found.ended = _state(remains.told, process is not None)
    found.quiet = _quiet(folder)
    _place(found, remains)
    _losses(found, remains.lines)
    _operations(found, remains)
    _speed(found, remains.lines)
    found.saved = [_looked_at(saved, verified) for saved in checkpoints(folder)]
    found.result = MODEL if (folder / MODEL / "config.json").is_file() else None
    found.advice = advice(found)
    return found


def _state(told: Sequence[Event], running: bool) -> tuple[str, dict[str, Any] | None]:
    """In one word, and the event behind it."""
    marks = [event for event in told if event["event"] in _ENDINGS or event["event"] in _BEGINNINGS]
    if running:
        return RUNNING, None
    if not marks:
        return EMPTY, None
    last = marks[-1]
    if last["event"] not in _ENDINGS:
        return KILLED, None
    kept: dict[str, Any] = {name: last[name] for name in ("event", "step", "time", "error", "reason") if name in last}
    early = [event for event in told if event["event"] == "stopped_early" and event["step"] == last["step"]]
    return _ENDINGS[last["event"]], {**kept, "early": bool(early and last["event"] == "end")}


def _quiet(folder: Path) -> float | None:
    times = []
    for path in (folder / JOURNAL, folder / STATS / HISTORY, folder / STATS / PROGRESS):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(0.0, time.time() - max(times)) if times else None


def _place(found: Standing, remains: Remains) -> None:
    """How far the run has come: as it says, else as its log lines and events do."""
    lines, told, places = remains.lines, remains.progress, remains.places
    marks = [found.ended] if found.ended else remains.events
    noted = max((int(event["step"]) for event in marks), default=0)
    found.step = max(whole(places[0].get("step")) or 0, noted)
    found.end = whole(told.get("end"))
    found.epoch, found.seconds = (
        next((value for place in places if _is_place(value := number(place.get(name)))), None)
        for name in ("epoch", "seconds")
    )
    found.tokens = next((count for place in places if (count := whole(place.get("tokens"))) is not None), None)
    stages = told.get("stages")
    found.stages = [str(name) for name in stages] if isinstance(stages, list) else []
    stage = next((place["stage"] for place in places if "stage" in place), None)
    found.stage = stage if isinstance(stage, str) else None
    found.model = model_of(remains)
    found.learning_rate = number(_last_of(lines, "learning_rate"))
    if found.ended is not None and found.state == FINISHED and found.end is None:
        found.end = int(found.ended["step"])


def _is_place(value: float | None) -> bool:
    return value is not None and 0 <= value < math.inf


def model_of(remains: Remains) -> dict[str, Any]:
    """Shape and size as it is now; of a run that does not say it, and had no operation, the shape alone."""
    if isinstance(model := remains.progress.get("model"), Mapping):
        return dict(model)
    if remains.records:
        after = remains.records[-1].after
        names = ("layers", "hidden", "mlp", "parameters", "trainable", "lora_rank", "lora_modules")
        return {name: after[name] for name in names if name in after}
    specs = [event["spec"] for event in remains.events if isinstance(event.get("spec"), Mapping)]
    config = specs[-1].get("config") if specs else None
    if not isinstance(config, Mapping):
        return {}
    wide = config.get("n_inner") or 4 * (number(config.get("n_embd")) or 0)
    facts = {"layers": config.get("n_layer"), "hidden": config.get("n_embd"), "mlp": wide}
    return {name: size for name, value in facts.items() if (size := whole(value))}


def _last_of(lines: Sequence[Mapping[str, Any]], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if number(line.get(key)) is not None), None)


def _losses(found: Standing, lines: Sequence[Mapping[str, Any]]) -> None:
    def points(key: str) -> list[dict[str, Any]]:
        there = [(line["step"], number(line.get(key))) for line in lines]
        return [{"step": int(step), "loss": loss} for step, loss in there if loss is not None]

    found.loss = next(iter(points("loss")[-1:]), None)
    names = sorted({key for line in lines for key in line if key.startswith("eval_") and key.endswith("loss")})
    key = "eval_loss" if "eval_loss" in names or not names else names[0]
    if measured := points(key):
        found.evaluation = measured[-1]
        sound = [point for point in measured if math.isfinite(point["loss"])]
        found.best = min(sound, key=lambda point: point["loss"], default=None)


def _operations(found: Standing, remains: Remains) -> None:
    found.operations = len(remains.records)
    found.undone = sum(event["event"] == "rolled_back" for event in remains.events)
    if remains.records:
        found.last = remains.records[-1].to_dict()
    coming = remains.progress.get("next")
    if isinstance(coming, Mapping) and isinstance(coming.get("operation"), str):
        found.next = dict(coming)
    elif not remains.progress:
        found.next = _listed(remains.events, found.operations + found.undone)


def _listed(events: Sequence[Event], done: int) -> dict[str, Any] | None:
    """The next operation as the run was begun with it, of a run that does not say where it stands."""
    listed = next((event.get("schedule") for event in events if event["event"] == "start"), None)
    if not isinstance(listed, list) or done >= len(listed) or not isinstance(listed[done], Mapping):
        return None
    entry = listed[done]
    if not isinstance(entry.get("name"), str):
        return None
    conditions = {name: entry[name] for name in ("when", "trigger_loss", "max_wait_iters") if name in entry}
    words = ", ".join(f"{name} {value}" for name, value in conditions.items())
    return {"operation": entry["name"], "value": entry.get("value"), "trigger": words, "progress": words}


def _speed(found: Standing, lines: Sequence[Mapping[str, Any]]) -> None:
    """Over the last log lines; after an operation, over those since it."""
    since = found.last["step"] if found.last else -1
    timed = [line for line in lines if number(line.get("seconds")) is not None and number(line.get("step")) is not None]
    recent = [line for line in timed if line["step"] >= since][-_RECENT:]
    if len({line["step"] for line in recent}) < 2:
        recent = timed[-_RECENT:]
    if len(recent) < 2:
        return
    first, last = recent[0], recent[-1]
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    if steps <= 0 or seconds <= 0:
        return
    found.steps_per_second = steps / seconds
    tokens = (number(last.get("tokens")) or 0) - (number(first.get("tokens")) or 0)
    found.tokens_per_second = tokens / seconds if tokens > 0 else None
    if found.end is not None and found.state != FINISHED:
        found.left = max(0, found.end - found.step) * seconds / steps


def _looked_at(folder: Path, verified: bool) -> Saved:
    """A checkpoint, and whether its files are there in their sizes; `verified`: in their content too."""
    step = int(folder.name.removeprefix("checkpoint-"))
    try:
        if verified:
            verify(folder)
        else:
            for name, (size, _) in check_listed(folder, ()).items():
                path = folder / name
                if not path.is_file():
                    raise CheckpointError(f"{path}: is missing")
                if path.stat().st_size != size:
                    raise CheckpointError(f"{path}: holds {path.stat().st_size} bytes instead of {size}")
    except (CheckpointError, OSError) as error:
        said = (
            str(error).removesuffix("; use another checkpoint").removeprefix(f"{folder}/").removeprefix(f"{folder}: ")
        )
        return Saved(folder.name, step, said)
    return Saved(folder.name, step)
