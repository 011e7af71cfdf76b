"""Data sets by name: of the Hub, in a folder of data files, or written by `save_to_disk`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets

from morphing_trainer.data.hub import first_line, hub_problem, looks_local
from morphing_trainer.data.json_files import check_json_files
from morphing_trainer.data.progress import progress_bars
from morphing_trainer.errors import DataError, suggest

VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval")


def load_named(where: str, name: str, config: str | None) -> datasets.DatasetDict:
    """All splits of the data set.

    Raises:
        DataError: if it does not exist, cannot be reached or cannot be read.
    """
    check_reachable(where, name)
    with loading(where, config), progress_bars(float("inf")):
        folder = str(Path(name).expanduser())
        if is_saved(name):
            loaded = datasets.load_from_disk(folder)
        else:
            local = looks_local(name)
            builder = datasets.load_dataset_builder(folder if local else name, config)
            if local:
                check_json_files(where, builder)
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict({"train": loaded})


def is_saved(name: str) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((Path(name).expanduser() / file).is_file() for file in ("dataset_dict.json", "state.json"))


def check_reachable(where: str, name: str) -> None:
    """Raises DataError if there is no such folder, or the Hub does not answer; quickly, before anything is loaded."""
    folder, local = Path(name).expanduser(), looks_local(name)
    if folder.is_file():
        raise DataError(f"{where}: is a file. Set train_file to it instead.")
    if local and not folder.is_dir():
        raise DataError(f"{where}: there is no such folder. Check the path (from {Path.cwd()}), or give a Hub id.")
    if not local and not datasets.config.HF_HUB_OFFLINE and (problem := hub_problem()) is not None:
        raise DataError(
            f"{where}: is no local folder, and the Hub cannot be reached ({problem}). Check the connection, use "
            "train_file, or, if it was downloaded before, set HF_HUB_OFFLINE=1 to use the cached copy."
        )


@contextlib.contextmanager
def loading(where: str, config: str | None) -> Iterator[None]:
    """What `datasets` raises within this block, as a DataError that says what to do."""
    try:
        yield
    except DataError:
        raise
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"{where}: does not exist on the Hub, or is private or gated, and is no local folder. Check the name; for "
            "a private or gated data set, log in with `hf auth login`."
        ) from error
    except ConnectionError as error:
        raise DataError(
            f"{where}: is not in the local cache, and the Hub cannot be reached ({first_line(error)}). "
            "Check the connection, unset HF_HUB_OFFLINE, or use train_file."
        ) from error
    except Exception as error:  # unknown configurations, damaged files, unsupported formats
        reason = first_line(error.__cause__ or error)
        if reason == "Config name is missing":  # the names are in the next line
            reason = " ".join(str(error).split("\n")[:2])
        raise DataError(f"{where}: cannot be loaded ({reason}). Check it, and dataset_config ({config!r}).") from error


def choose_splits(names: Iterable[str], train_split: str, where: str) -> tuple[str, str | None]:
    """The splits to train on and to evaluate on, of those that there are; None if one is to be made.

    Raises:
        DataError: if there is no split `train_split`.
    """
    known = [str(name) for name in names]
    if train_split not in known:
        raise DataError(
            f"{where}: has no split {train_split!r}{suggest(train_split, known)} "
            f"(set train_split to one of its splits: {', '.join(known)})"
        )
    return train_split, next((name for name in VALIDATION_NAMES if name in known and name != train_split), None)
