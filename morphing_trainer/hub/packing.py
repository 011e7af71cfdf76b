"""From a model's folder and its run to a parcel: its files, its card, its journal, its schedule."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi

from morphing_trainer.hub.card import card
from morphing_trainer.hub.parcel import ADAPTER_CONFIG, CARD, Parcel, model_files, run_files
from morphing_trainer.hub.privacy import anonymous_data, places_of
from morphing_trainer.hub.quiet import patient
from morphing_trainer.hub.staging import MADE, whole
from morphing_trainer.hub.told import ModelFacts, journal_of, model_facts, schedule_of, tell
from morphing_trainer.run.folder import JOURNAL
from morphing_trainer.run.journal import Event, read_events

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def pack(
    repo: str,
    folder: Path,
    run: Path,
    *,
    saved: Path | None = None,
    merged: bool = True,
    checkpoints: Mapping[str, Path] | None = None,
    given: Mapping[str, Any] | None = None,
    api: HfApi | None = None,
) -> Iterator[Parcel]:
    """A parcel, whose files are there as long as the block lasts.

    Args:
        repo: the repository that it is for.
        folder: of the model.
        saved: the checkpoint that it is of, which knows what the run was then.
        merged: adapters that are beside the model of a checkpoint are merged first.
        checkpoints: name in the repository -> a checkpoint that goes along as it is.
        given: what the user says for the card, see `card`.
        api: to ask for the licence of the model that the run began with; None asks nobody.

    Raises:
        MorphError: if the folder holds no model that can be read.
    """
    with tempfile.TemporaryDirectory(prefix=MADE, dir=run if saved else None) as made:
        if saved is not None and merged and (folder / ADAPTER_CONFIG).is_file():
            from morphing_trainer.hub.merging import merge

            merge(folder, Path(made) / "model")
            folder = Path(made) / "model"
        known = _with_license(api, given or {}, run, saved, folder)
        yield packed(repo, folder, run, saved, checkpoints or {}, known)


def packed(
    repo: str,
    folder: Path,
    run: Path,
    saved: Path | None,
    checkpoints: Mapping[str, Path],
    given: Mapping[str, Any],
) -> Parcel:
    """The parcel of a model that is as it should be; nothing is asked of the Hub."""
    files = model_files(folder, repo)
    journal = journal_of(run, saved)
    told = tell(model_facts(folder), run, saved)
    files |= run_files(run, journal, schedule_of(_events(saved or run)))
    files[CARD] = card(told, repo, **given).encode()
    for name, checkpoint in checkpoints.items():
        files |= whole(checkpoint, name)
    return Parcel(files, told.begun, tuple(f"{name}/" for name in checkpoints))


def begun_of(run: Path, resumed: str | bool | None = None) -> Event | None:
    """The event with which the run in a folder began, or the one of the checkpoint that it is resumed from."""
    folders = [run]
    if isinstance(resumed, str) and Path(resumed).is_dir():
        folders.append(Path(resumed))
    for folder in folders:
        for event in _events(folder):
            if event["event"] == "start":
                found: Event = anonymous_data(event, places_of(run))
                return found
    return None


def live_facts(model: PreTrainedModel, *, merged: bool) -> ModelFacts:
    """Of a model in memory, as it would be saved."""
    from morphing_trainer.lineage import ModelSpec

    spec = ModelSpec.of(model)
    facts = spec.facts()
    config = json.loads(model.config.to_json_string(use_diff=False))
    if merged or not spec.sites:
        plain = sum(size for name, size in _sizes(spec).items() if not spec.adapter_at(name))
        return ModelFacts(config, plain)
    return ModelFacts(config, sum(_sizes(spec).values()), facts["lora_rank"], facts["lora_modules"])


def _sizes(spec: Any) -> dict[str, int]:
    sizes = {}
    for name, shape in spec.shapes.items():
        sizes[name] = 1
        for side in shape:
            sizes[name] *= int(side)
    return sizes


def _with_license(
    api: HfApi | None, given: Mapping[str, Any], run: Path, saved: Path | None, folder: Path
) -> Mapping[str, Any]:
    """The licence of the model that it began with, if the Hub knows one and the user has not said another."""
    if api is None or given.get("license"):
        return given
    base = given.get("finetuned_from") or tell(model_facts(folder), run, saved).base
    if not base:
        return given
    try:
        with patient(30.0):
            info = api.model_info(base)
        found = getattr(info.card_data, "license", None)
    except Exception:  # of any kind: without it the card says nothing of a licence
        return given
    return {**given, "license": found} if isinstance(found, str) else given


def _events(folder: Path) -> list[Event]:
    path = folder / JOURNAL
    return read_events(path)[0] if path.is_file() else []
