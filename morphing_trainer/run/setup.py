"""What a run was told and what it runs on, as a file beside its statistics: for reports, which import no torch."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import morphing_trainer

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")
_SECRET = re.compile(r"(^|[-_])(token|secret|password|passwd|key)$", re.IGNORECASE)
"""Ends of the names of options whose values are nobody's business."""
HIDDEN = "<not shown>"
_DERIVED = frozenset(
    {"accelerator_config", "debug", "do_eval", "ddp_find_unused_parameters", "dataloader_pin_memory", "report_to"}
)
"""What `TrainingArguments` makes out of its own default."""


def setup(groups: Mapping[str, Any], device: Any, processes: int) -> dict[str, Any]:
    """The file's content.

    `command`: with which the process was started; `arguments`: group -> name -> value; `changed`: group -> names of
    those that differ from their defaults; `versions` of what computes; `device`, and the number of `processes`.

    Args:
        groups: dataclasses of arguments by name; or (dataclass, values that stand for its own).
    """
    arguments: dict[str, dict[str, Any]] = {}
    changed: dict[str, list[str]] = {}
    for name, group in groups.items():
        told, instead = group if isinstance(group, tuple) else (group, {})
        values = {**dataclass_values(told), **instead}
        arguments[name] = {key: HIDDEN if _SECRET.search(key) and value else value for key, value in values.items()}
        changed[name] = sorted(changed_names(told, values))
    return {
        "command": command(sys.argv),
        "arguments": arguments,
        "changed": changed,
        "versions": versions(),
        "device": str(device),
        "processes": processes,
    }


def dataclass_values(told: Any) -> dict[str, Any]:
    """Field -> value, of enums their values."""
    return {entry.name: _plain(getattr(told, entry.name, None)) for entry in dataclasses.fields(told)}


def changed_names(told: Any, values: Mapping[str, Any]) -> list[str]:
    """Names of the fields of a dataclass whose values are not their defaults; None stands for "not given"."""
    found = []
    for entry in dataclasses.fields(told):
        default: Any = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        value = values.get(entry.name)
        if value is not None and value != _plain(default) and entry.name not in _DERIVED:
            found.append(entry.name)
    return found


def command(argv: Sequence[str]) -> list[str]:
    """A command line without secrets; of an absolute path to a program its name."""
    shown = [Path(argv[0]).name if Path(argv[0]).is_absolute() else argv[0]] if argv else []
    hides = False
    for word in argv[1:]:
        name, equals, value = word.partition("=")
        secret = name.startswith("-") and bool(_SECRET.search(name))
        shown.append(f"{name}={HIDDEN}" if secret and equals and value else HIDDEN if hides else word)
        hides = secret and not equals
    return shown


def versions() -> dict[str, str]:
    """Of this library, Python, and what it computes with."""
    found = {"morphing-trainer": morphing_trainer.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
