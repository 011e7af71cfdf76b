"""One commit with all of it, or none: what is there by now is looked at, then the rest is sent, again if need be."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

from morphing_trainer.data.hub import hub_problem
from morphing_trainer.errors import HubError
from morphing_trainer.hub.account import Place
from morphing_trainer.hub.failures import is_passing, status_of, told
from morphing_trainer.hub.parcel import CARD, Parcel
from morphing_trainer.hub.quiet import patient
from morphing_trainer.run.folder import JOURNAL
from morphing_trainer.run.journal import Event

ATTEMPTS = 3
PAUSES = (1.0, 5.0)
"""Seconds before the second attempt, and before the third. Within each, the client repeats most requests itself."""

_FREE = frozenset({".gitattributes", ".gitignore", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"})
"""Files of a repository that is free to be filled."""


@dataclass(frozen=True)
class Sent:
    """What a push has come to.

    Attributes:
        commit: the newest of the branch; `changed`: it was made for this push.
        url: of that commit.
        files: path -> bytes of what was to be there.
        removed: files of another model that went.
    """

    repo: str
    revision: str
    commit: str
    url: str
    changed: bool
    files: dict[str, int]
    removed: list[str]


@dataclass(frozen=True)
class Holding:
    """What a branch holds: its newest commit (None if there is no such branch), its files, how their run began."""

    commit: str | None
    files: list[str]
    begun: Event | None = None


def send(
    place: Place,
    parcel: Parcel,
    message: str,
    *,
    replaces: bool = False,
    known: str | None = None,
    shows: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Sent:
    """Push. What the branch held before stays whole until all of the new is there.

    Args:
        replaces: another run that the branch holds makes way.
        known: the caller's own last commit: whatever the branch holds with it makes way.
        shows: with progress bars.

    Raises:
        HubError: the branch holds something else, or the Hub has refused, or could not be reached.
    """
    seen: list[Holding] = []
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(PAUSES[attempt - 1])
        try:
            if problem := hub_problem():
                raise HubError(f"{place.id}: the Hub cannot be reached ({problem})", passing=True)
            with patient(shows=shows):
                seen.append(holding(place))
                if seen[-1].commit is None or seen[-1].commit != known:
                    check_free(place, seen[-1], parcel.begun, replaces=replaces)
                # If an answer was lost on the way, the commit may be there already; it was made for this push, too.
                return _send(place, parcel, message, seen[-1], before=seen[0].commit)
        except Exception as error:  # the client's types depend on the HTTP library that it was built with
            if attempt + 1 == ATTEMPTS or not is_passing(error) or _is_down(error):
                if isinstance(error, HubError):
                    raise
                raise HubError(f"{place.id}: {told(error)}", passing=is_passing(error)) from error
    raise AssertionError("the last attempt returns or raises")


def _is_down(error: Exception) -> bool:
    """Nobody answers at all: that will not change in seconds."""
    return isinstance(error, HubError)


def _send(place: Place, parcel: Parcel, message: str, held: Holding, before: str | None) -> Sent:
    removed = parcel.stale(held.files)
    operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(parcel.files.items())]
    operations += [CommitOperationDelete(path, is_folder=False) for path in removed]
    made = place.api.create_commit(
        place.id,
        operations,
        commit_message=message,
        revision=place.revision,
        parent_commit=held.commit,
    )
    changed = made.oid != before
    return Sent(place.id, place.revision, made.oid, made.commit_url, changed, parcel.sizes, removed)


def holding(place: Place) -> Holding:
    """What the branch holds now; nothing, if there is no such repository or branch."""
    try:
        commit = place.api.repo_info(place.id, revision=place.revision).sha
        files = sorted(place.api.list_repo_files(place.id, revision=commit))
    except HfHubHTTPError as error:
        if status_of(error) == 404:
            return Holding(None, [])
        raise
    if JOURNAL not in files:
        return Holding(commit, files)
    with tempfile.TemporaryDirectory(prefix="morph-hub-") as folder:
        got = place.api.hf_hub_download(place.id, JOURNAL, revision=commit, local_dir=folder)
        with Path(got).open("rb") as file:
            first = file.readline(64 << 20)
    try:
        event = json.loads(first)
        begun = event if isinstance(event, dict) and event.get("event") == "start" else None
    except ValueError:
        begun = None
    return Holding(commit, files, begun)


def same_run(one: Event | None, other: Event | None) -> bool:
    """Whether two journals begin as one run's do: at one moment, with one seed, one schedule."""
    if one is None or other is None:
        return one is other
    return all(one.get(name) == other.get(name) for name in ("time", "seed", "schedule"))


def check_free(place: Place, held: Holding, begun: Event | None, *, replaces: bool) -> None:
    """Refuse to put a run in the place of something else.

    Raises:
        HubError: saying what is there.
    """
    others = [name for name in held.files if name not in _FREE]
    if not others or (held.begun is not None and same_run(held.begun, begun)):
        return
    shown = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
    where = f"{place.id}{'' if place.revision == 'main' else f' ({place.revision})'}"
    if held.begun is None:
        raise HubError(
            f"{where}: holds files that are of no run of this library ({shown}) and that a push would replace. Give "
            "another repository, or another branch of an empty one."
        )
    if not replaces:
        raise HubError(
            f"{where}: holds another run, which began at {str(held.begun.get('time'))[:19]} ({shown}). Give another "
            "name or branch, or --overwrite_output_dir (of a training) or --overwrite (of morph push): its commits "
            "stay in the history."
        )
