"""The files that go to the Hub: a model's own, by name, and what tells of its run. Nothing else ever does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from morphing_trainer.errors import ModelError
from morphing_trainer.hub.privacy import anonymous_data, anonymous_lines, places_of
from morphing_trainer.reading import read_json
from morphing_trainer.run.folder import JOURNAL
from morphing_trainer.run.journal import Event

CARD, SCHEDULE = "README.md", "schedule.yaml"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model"),
)
MODEL_FILES = (CONFIG, "generation_config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS, *_TOKENIZER)
_LOCAL_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Keys of a model's JSON files that hold where it was loaded from."""

Content = Path | bytes


@dataclass(frozen=True)
class Parcel:
    """What one commit is to make of the repository.

    Attributes:
        files: path in the repository -> the file, or its content.
        begun: the event with which the run began, by which it is known again; None of a model that was never trained.
        prefixes: folders of the repository that hold what is in `files` below them, and nothing else.
    """

    files: Mapping[str, Content]
    begun: Event | None = None
    prefixes: tuple[str, ...] = field(default=())

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in sorted(self.files.items())}

    def stale(self, there: list[str]) -> list[str]:
        """Of the files that are `there`, those of another state of this run, which would be loaded with this one."""
        ours = [name for name in there if is_model_file(name) or name == SCHEDULE or name.startswith(self.prefixes)]
        return sorted(name for name in ours if name not in self.files)


def is_model_file(name: str) -> bool:
    """Whether a file of a repository, or of a model's folder, is part of a model as this library saves it."""
    shard = name.startswith("model") and name.endswith((".safetensors", ".safetensors.index.json")) and "/" not in name
    return shard or name in MODEL_FILES


def model_files(folder: Path, home: str | None) -> dict[str, Content]:
    """The model in `folder`: its weights, its description, its tokenizer.

    Args:
        home: the repository in which it will stand, where adapters have their base model beside them; None leaves out
            where the model was loaded from.

    Raises:
        ModelError: if its weights, or a file that says what it is, cannot be read.
    """
    found: dict[str, Content] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and is_model_file(path.name):
            found[path.name] = path
            if path.suffix == ".safetensors":
                _check_weights(path)
    for name in (CONFIG, ADAPTER_CONFIG, "tokenizer_config.json", "generation_config.json"):
        if name not in found:
            continue
        try:
            data = read_json(folder / name)
            known = {key: data[key] for key in _LOCAL_NAMES if key in data}
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"{folder / name}: cannot be read ({error}); save the model again.") from error
        if known:
            instead = {"base_model_name_or_path": home} if name == ADAPTER_CONFIG else {}
            data = {key: value for key, value in data.items() if key not in known} | instead
            found[name] = (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()
    if CONFIG not in found or not any(name.startswith("model") for name in found):
        raise ModelError(f"{folder}: holds no model (no {CONFIG}, or no {WEIGHTS}); save it again.")
    return found


def _check_weights(path: Path) -> None:
    """Raises ModelError unless the file is as long as its header says, so that it can be loaded."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); save the model again.") from error


def run_files(run: Path, journal: bytes, schedule: list[dict[str, object]]) -> dict[str, Content]:
    """What tells of a run: its journal, and the schedule that it followed, without places on this machine."""
    places = places_of(run)
    files: dict[str, Content] = {}
    if journal:
        files[JOURNAL] = anonymous_lines(journal, places)
    if schedule:
        text = yaml.safe_dump(anonymous_data(schedule, places), sort_keys=False, allow_unicode=True, width=100)
        files[SCHEDULE] = f"# The operations of this run; train.py --scaling_schedule_file {SCHEDULE}\n{text}".encode()
    return files
