"""Operations, triggers and architectures of your own, made known to schedules: `register`.

There is no search for plug-ins and nothing is loaded by name: what is registered is what your own script has imported,
so that a schedule file can never decide which code runs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from morphing_trainer.architectures import ARCHITECTURES, Architecture
from morphing_trainer.errors import ConfigError
from morphing_trainer.operations import NAMES, OPERATIONS, ArchitectureOperation, HyperparameterOperation, Operation
from morphing_trainer.schedule_entry import Terms
from morphing_trainer.triggers import KINDS, VALUED, ValuedTrigger

Part = TypeVar("Part")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = frozenset({*Terms.model_fields, "when", "repeat", "operations"})
"""Keys of an entry that are not the operation's."""


def register(part: Part) -> Part:
    """Make an operation, a condition or a model family of your own known, and return it.

    ```python
    @register
    class DropLayers(ArchitectureOperation): ...
    ```

    From then on schedules that this process reads may use it, and so may `morph(...)` and the checks before a run. Call
    it before a schedule is read: at the top of the script that starts the run, in every process and at every resume. A
    class of the same module and name takes the place of the one before, so that a notebook's cell can be run again; any
    other name that is taken is refused.

    Args:
        part: a subclass of `ArchitectureOperation` or `HyperparameterOperation`, a subclass of `ValuedTrigger`, or an
            `Architecture`.

    Raises:
        ConfigError: if it is none of these, is not complete, or its name is taken.
    """
    if isinstance(part, Architecture):
        _check_free(part.model_type, ARCHITECTURES.get(part.model_type), part)
        ARCHITECTURES[part.model_type] = part
    elif isinstance(part, type) and issubclass(part, ArchitectureOperation | HyperparameterOperation):
        _register_operation(part)
    elif isinstance(part, type) and issubclass(part, ValuedTrigger):
        _register_trigger(part)
    else:
        raise ConfigError(
            f"register: {_called(part)} is nothing that a schedule could use; give a subclass of "
            "ArchitectureOperation, HyperparameterOperation or ValuedTrigger, or an Architecture"
        )
    return part


def _register_operation(kind: type[Operation]) -> None:
    field = kind.model_fields["name"]
    name = field.default
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        example = 'name: Literal["drop_layers"] = "drop_layers"'
        raise ConfigError(f"register: {_called(kind)} has no name that a schedule could write; give it one: {example}")
    if not isinstance(getattr(kind, "family", None), str):
        raise ConfigError(f'register: {name} has no family; say under which heading it belongs: family = "Depth"')
    _check_text(name, kind)
    if clashes := sorted(_TAKEN & kind.model_fields.keys()):
        raise ConfigError(f"register: {name}: every entry of a schedule has a field {clashes[0]!r}; rename your option")
    for each in (name, *kind.aliases):
        _check_free(each, NAMES.get(each), kind)
    OPERATIONS[name] = kind
    NAMES.update(dict.fromkeys((name, *kind.aliases), kind))


def _register_trigger(kind: type[ValuedTrigger]) -> None:
    name = getattr(kind, "kind", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        what = 'has no name that a schedule could write; give it one: kind = "..."'
        raise ConfigError(f"register: {_called(kind)} {what}")
    _check_text(name, kind)
    missing = [method for method in ("due", "describe", "progress") if not _defines(kind, method)]
    if missing:
        raise ConfigError(f"register: {name} has no method {missing[0]}(); see morphing_trainer.triggers.Trigger")
    _check_free(name, VALUED.get(name), kind, KINDS)
    VALUED[name] = kind


def _defines(kind: type[ValuedTrigger], method: str) -> bool:
    return getattr(kind, method) is not getattr(ValuedTrigger, method)


def _check_text(name: str, kind: type[Any]) -> None:
    if not inspect.cleandoc(kind.__dict__.get("__doc__") or ""):
        raise ConfigError(f"register: {name} has no docstring; say in a sentence what it does")


def _check_free(name: str, known: Any, new: Any, built_in: Iterable[str] = ()) -> None:
    """Refuse a name that something else has.

    Raises:
        ConfigError: naming it.
    """
    if (known is None and name not in built_in) or known is new:
        return
    if isinstance(new, type) and isinstance(known, type):
        again = (known.__module__, known.__qualname__) == (new.__module__, new.__qualname__)
        if again and name not in built_in:
            return
    raise ConfigError(f"register: {name!r} is taken by {_called(known or name)}; choose another name")


def _called(part: Any) -> str:
    return part.__qualname__ if isinstance(part, type) else f"{part!r:.60}"
