"""The files of a checkpoint that `Trainer` reads by itself: held against what a run writes, before it does.

`Trainer` makes objects of `trainer_state.json`, copies the scheduler's state onto the attributes of the live one, and
what it puts onto callbacks is named by the file. None of that runs code from a file, but a file that another hand has
changed would fail in the middle of the run, or give an attribute a value that it must not have.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerState

from morphing_trainer.checkpoint.torch_files import read_torch_file
from morphing_trainer.errors import CheckpointError
from morphing_trainer.reading import read_json

TRAINER_STATE = "trainer_state.json"
OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"

_RANDOM = ("python", "numpy", "cpu")
_SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
"""What optimizers keep in the shape of the parameter."""
_INSTEAD = "use another checkpoint"
_WHATEVER: tuple[type[Exception], ...] = (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError)
_WHATEVER += (OverflowError, OSError, SafetensorError)


def check_trainer_files(
    folder: Path, random_states: Iterable[str], step: Any, optimizer: Any = None
) -> Sequence[Mapping[str, Any]]:
    """Look at every file of a checkpoint that `Trainer` will load. Returns the param groups of its optimizer.

    Args:
        random_states: names of the files of random numbers.
        step: optimizer step that the checkpoint was saved at.
        optimizer: what `read_torch_file` found in the optimizer's file, if it has been read.

    Raises:
        CheckpointError: naming a file that is not what a run writes.
    """
    _check_state(folder / TRAINER_STATE, step)
    optimizer = _as_mapping(folder / OPTIMIZER, optimizer) if optimizer is not None else _mapping(folder / OPTIMIZER)
    groups, entries = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, list) or not isinstance(entries, Mapping):
        raise _bad(folder / OPTIMIZER, "it has no state and param_groups")
    if not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
        raise _bad(folder / OPTIMIZER, "a param group names no parameters")
    if not all(isinstance(entry, Mapping) for entry in entries.values()):
        raise _bad(folder / OPTIMIZER, "the state of a parameter is no mapping")
    _mapping(folder / SCHEDULER)
    if (folder / SCALER).exists():
        _mapping(folder / SCALER)
    for name in random_states:
        found = _mapping(folder / name)
        if missing := [part for part in _RANDOM if part not in found]:
            raise _bad(folder / name, f"it has no random state of {missing[0]}")
    return groups


def check_scheduler(path: Path, live: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the file would give the scheduler, of state `live`, anything that it does not keep."""
    for name, value in _mapping(path).items():
        if name not in live:
            raise _bad(path, f"a scheduler of this run keeps no {name!r}")
        if not _alike(value, live[name]):
            raise _bad(path, f"{name} is {_shown(value)}")


def check_groups(path: Path, groups: Sequence[Mapping[str, Any]], live: Optimizer) -> None:
    """Raises CheckpointError if a setting of `groups`, those of the file, is of another kind than the live one."""
    if len(groups) != len(live.param_groups):
        raise _bad(path, f"it has {len(groups)} param groups instead of {len(live.param_groups)}")
    for saved, group in zip(groups, live.param_groups, strict=True):
        for name, value in group.items():
            if name != "params" and name in saved and not _alike(saved[name], value):
                raise _bad(path, f"{name} of a param group is {_shown(saved[name])}")
        if len(saved["params"]) != len(group["params"]):
            raise _bad(path, f"a param group has {len(saved['params'])} parameters instead of {len(group['params'])}")


def check_moments(path: Path, optimizer: Optimizer, before: Iterable[Iterable[str]]) -> None:
    """Raises CheckpointError if an optimizer that was loaded could not make a step.

    Args:
        before: names of the settings that each param group had before.
    """
    for group, names in zip(optimizer.param_groups, before, strict=True):
        if missing := [name for name in names if name not in group]:
            raise _bad(path, f"a param group has no {missing[0]}")
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if name in _SHAPED and isinstance(value, Tensor) and value.shape != parameter.shape:
                    shape = list(parameter.shape)
                    raise _bad(path, f"{name} has shape {list(value.shape)} for a parameter of shape {shape}")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Make a CheckpointError of whatever torch and `Trainer` raise while they load `path`, but for want of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, CheckpointError):
        raise
    except _WHATEVER as error:
        raise _bad(path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]) from error


def check_callbacks(path: Path, saved: Mapping[str, Any], live: Iterable[Any]) -> None:
    """Raises CheckpointError if the file names anything of a callback that the callback itself would not save.

    Args:
        saved: class name -> state, or several.
        live: the callbacks that may be given it, each with `state()`.
    """
    for callback in live:
        name, own = type(callback).__name__, callback.state()
        states = saved.get(name, [])
        for state in states if isinstance(states, list) else [states]:
            if not isinstance(state, Mapping):
                raise _bad(path, f"the state of {name} is no mapping")
            for part in ("args", "attributes"):
                given, known = state.get(part, {}), own.get(part, {})
                if not isinstance(given, Mapping) or (others := [key for key in given if key not in known]):
                    what = f"keeps no {others[0]!r}" if isinstance(given, Mapping) else f"has no mapping of {part}"
                    raise _bad(path, f"{name} {what}")
                for key, value in given.items():
                    if not _alike(value, known[key]):
                        raise _bad(path, f"{key} of {name} is {_shown(value)}")


def _check_state(path: Path, step: Any) -> None:
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise _bad(path, str(error)) from error
    if not isinstance(data, dict):
        raise _bad(path, "it is no mapping")
    hints = get_type_hints(TrainerState)
    known = {entry.name: entry for entry in fields(TrainerState)}
    for name, value in data.items():
        if name not in known:
            raise _bad(path, f"it holds an unknown {name!r}")
        empty = value is None and known[name].default is None
        if name != "stateful_callbacks" and not empty and not _fits(value, hints[name]):
            raise _bad(path, f"{name} is {_shown(value)}")
    if missing := [name for name in ("global_step", "log_history") if name not in data]:
        raise _bad(path, f"it has no {missing[0]}")
    if not isinstance(data.get("stateful_callbacks", {}), dict | types.NoneType):
        raise _bad(path, "stateful_callbacks is no mapping")
    if data["global_step"] != step:
        raise _bad(path, f"global_step is {_shown(data['global_step'])}, and the rest is of step {step}")


def _mapping(path: Path) -> Mapping[str, Any]:
    return _as_mapping(path, read_torch_file(path))


def _as_mapping(path: Path, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise _bad(path, f"it holds {_shown(content)}")
    return content


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of the type `hint`."""
    kind = get_origin(hint) or hint
    if kind in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if kind is list:
        return isinstance(value, list) and all(_fits(item, part) for part in get_args(hint)[:1] for item in value)
    if kind is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is types.NoneType:
        return value is None
    if kind in (int, bool, str):
        # Trainer itself writes whole numbers of steps as floats, where they were given as shares.
        return type(value) is kind or (kind is int and isinstance(value, float))
    return True


def _alike(value: Any, live: Any) -> bool:
    """Whether `value` is of the kind of `live`; a number for a number, and anything plain for None."""
    if isinstance(live, bool) or isinstance(value, bool):
        return live is None or (isinstance(value, bool) and isinstance(live, bool | int | float | types.NoneType))
    if live is None or value is None:
        return value is None or isinstance(value, int | float | str | list | tuple | Mapping | Tensor)
    if isinstance(live, int | float | Tensor):
        return isinstance(value, int | float | Tensor)
    if isinstance(live, list | tuple):
        return isinstance(value, list | tuple) and all(_alike(item, live[0]) for item in value if live)
    if isinstance(live, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, type(live))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: is not one that a run has saved ({what}); {_INSTEAD}")
