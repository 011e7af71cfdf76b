"""What is known of a model and of the run that it comes from: plain values, for its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphing_trainer.errors import ConfigError, ModelError
from morphing_trainer.hub.data import Source, sources
from morphing_trainer.hub.names import is_of_hub
from morphing_trainer.hub.parcel import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG
from morphing_trainer.hub.privacy import anonymous_data, places_of
from morphing_trainer.reading import read_json
from morphing_trainer.reporting.journal import Change
from morphing_trainer.run.changes import changes_of
from morphing_trainer.run.folder import JOURNAL, SETUP, STATS
from morphing_trainer.run.journal import Event
from morphing_trainer.run.salvage import Remains, number, salvaged, whole

_MOST_HEADER = 100 << 20
_WRONG = (OSError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class ModelFacts:
    """A model in a folder.

    Attributes:
        config: as its file has it.
        parameters: numbers in its files, adapters included.
        rank, modules: of the adapters beside it: the largest, and how many; 0 without any.
        tokenizer: one is saved with it.
    """

    config: Mapping[str, Any]
    parameters: int
    rank: int = 0
    modules: int = 0
    tokenizer: bool = True


@dataclass(frozen=True)
class Told:
    """A run, as far as its card tells of it.

    Attributes:
        model: what is saved.
        step, end, tokens, seconds, epoch: how far it was trained, and was to be; None where that is not known.
        finished: the run has come to its end.
        began: the event with which it began; empty for a model that no run has trained.
        changes: its operations.
        lines: its log lines.
        arguments: group -> what the run was told.
        versions: of the libraries.
        data: what it was trained on, as far as it was told by name.
        base: the model of the Hub that it began with; `from_folder`: it began with another one.
    """

    model: ModelFacts
    step: int = 0
    end: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    epoch: float | None = None
    finished: bool = False
    began: Event = field(default_factory=dict)
    changes: Sequence[Change] = ()
    lines: Sequence[Mapping[str, Any]] = ()
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[Source] = ()
    base: str | None = None
    from_folder: bool = False

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """Log lines with `eval_loss`, on the evaluation set; of several sets, on the first."""
        keys = sorted({key for line in self.lines for key in line if key.startswith("eval_") and key.endswith("loss")})
        key = "eval_loss" if "eval_loss" in keys or not keys else keys[0]
        return [{**line, "eval_loss": line[key]} for line in self.lines if number(line.get(key)) is not None]

    @property
    def begun(self) -> Event | None:
        """By which the run is known again."""
        return self.began or None


def tell(model: ModelFacts, run: Path, saved: Path | None = None) -> Told:
    """What is known of a model of the run in the folder `run`.

    Args:
        saved: the checkpoint that the model is of; the run may have gone on since. None is the run as it is.
    """
    try:
        remains = salvaged(saved or run)
    except ConfigError:  # a model that was never trained
        return Told(model)
    if saved is not None:
        remains.lines = _saved_lines(saved)
    private = places_of(run)
    told = anonymous_data(remains.events, private)
    changes = changes_of(told, anonymous_data(remains.told, private))
    begin: Event = next((event for event in told if event["event"] == "start"), {})
    setup = setup_of(run)
    base, from_folder = _origin(setup, remains, run)
    end = whole(remains.progress.get("end")) or whole(_progress(run).get("end"))
    if saved is not None:
        remains.progress = {}  # of the run, which may have gone on
    places = remains.places
    marks = [int(event["step"]) for event in remains.events]
    step = max([whole(places[0].get("step")) or 0, *marks])
    return Told(
        model,
        step=step,
        end=end,
        tokens=next((count for place in places if (count := whole(place.get("tokens")))), None),
        seconds=next((time for place in places if (time := number(place.get("seconds")))), None),
        epoch=next((epoch for place in places if (epoch := number(place.get("epoch")))), None),
        finished=any(event["event"] == "end" for event in remains.events[-3:]) or (end is not None and step >= end > 0),
        began=begin,
        changes=changes,
        lines=anonymous_data(remains.lines, private),
        arguments=anonymous_data(setup.get("arguments", {}), private),
        versions=setup.get("versions", {}),
        data=sources(setup.get("arguments"), run),
        base=base,
        from_folder=from_folder,
    )


def schedule_of(events: Sequence[Event]) -> list[dict[str, Any]]:
    """The schedule that a run followed: what it began with, or what a resume has put in the place of the rest."""
    found: list[dict[str, Any]] = []
    done: list[dict[str, Any]] = []
    for event in events:
        if event["event"] == "start" and isinstance(event.get("schedule"), list):
            found = list(event["schedule"])
        elif event["event"] == "operation" and isinstance(event.get("entry"), dict):
            done.append(event["entry"])
        elif event["event"] == "override" and event.get("name") == "schedule" and isinstance(event.get("now"), list):
            found = [*done, *event["now"]]
    return found


def journal_of(run: Path, saved: Path | None) -> bytes:
    """The journal that goes with the model; empty if there is none."""
    path = (saved or run) / JOURNAL
    return path.read_bytes() if path.is_file() else b""


def model_facts(folder: Path) -> ModelFacts:
    """What the files of a model say of it; no weight is read.

    Raises:
        ModelError: if there is none, or a file is damaged.
    """
    try:
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
        speaks = (folder / "tokenizer_config.json").is_file()
        parameters = sum(sum(_sizes(path).values()) for path in sorted(folder.glob("model*.safetensors")))
        if not (folder / ADAPTER_CONFIG).is_file():
            return ModelFacts(config, parameters, tokenizer=speaks)
        sizes, adapter = _sizes(folder / ADAPTER_WEIGHTS), read_json(folder / ADAPTER_CONFIG)
        modules = sum(".lora_A" in name or ".lora_embedding_A" in name for name in sizes)
        rank = max([int(adapter["r"]), *map(int, (adapter.get("rank_pattern") or {}).values())])
        return ModelFacts(config, parameters + sum(sizes.values()), rank, modules, speaks)
    except _WRONG as error:
        raise ModelError(f"{folder}: holds no model that can be read ({error}); save it again.") from error


def _sizes(path: Path) -> dict[str, int]:
    """Numbers of each tensor in a file, from its header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        header = json.loads(file.read(length))
    sizes = {}
    for name, entry in header.items():
        if name != "__metadata__":
            sizes[name] = 1
            for side in entry["shape"]:
                sizes[name] *= int(side)
    return sizes


def setup_of(run: Path) -> dict[str, Any]:
    """What a run was told; empty if it does not say."""
    try:
        found = read_json(run / STATS / SETUP)
        return found if isinstance(found, dict) else {}
    except _WRONG:
        return {}


def _progress(run: Path) -> Mapping[str, Any]:
    try:
        found = read_json(run / STATS / "progress.json")
        return found if isinstance(found, dict) else {}
    except _WRONG:
        return {}


def _saved_lines(saved: Path) -> list[dict[str, Any]]:
    try:
        return [line for line in read_json(saved / "trainer_state.json")["log_history"] if isinstance(line, dict)]
    except _WRONG:
        return []


def _origin(setup: Mapping[str, Any], remains: Remains, run: Path) -> tuple[str | None, bool]:
    """The model of the Hub that a run began with, and whether it began with a model of another place."""
    try:
        name = setup["arguments"]["model"]["model_name_or_path"]
    except _WRONG:
        first = next((event for event in remains.events if event["event"] == "start"), {})
        name = (first.get("spec") or {}).get("config", {}).get("_name_or_path")
    if not isinstance(name, str) or not name:
        return None, False
    return (name, False) if is_of_hub(name, run) else (None, True)
