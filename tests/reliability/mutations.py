"""Mutated schedules, plans and run configs: deterministic, from the files in `configs/`.

Case `index` of `seed` is the same file in every process and on every machine, so that a failure is reproduced by its
two numbers.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from morphing_trainer.cli.groups import ALL
from morphing_trainer.documents import dump_yaml, load_document

CONFIGS = Path(__file__).parents[2] / "configs"
MARKER = "executed-by-mutation"
"""What payloads would leave behind in the current folder."""

Kind = Literal["schedule", "plan", "config"]
KINDS: tuple[Kind, ...] = ("schedule", "plan", "config")
TURNS: tuple[Kind, ...] = ("schedule", "plan", "schedule", "plan", "config")

TOKENS = [
    *(b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\r", b"\t", b"\n\n", b" ", b"\xe2\x80\xa8", b"\xed\xa0\x80"),
    *(b"- ", b": ", b"? ", b"{", b"}", b"[", b"]", b"'", b'"', b"#", b"|", b">", b"---\n", b"...\n", b"%YAML 9.9\n"),
    *(b"&a ", b"*a", b"<<: *a\n", b"&a [*a]", b"&b [&c {k: 1}, *c]", b"!!binary x", b"!!set {a}", b"!local x"),
    *(b"null", b"true", b"no", b".nan", b"-.inf", b"1e999", b"0x" + b"f" * 300, b"0o777", b"1_000", b"9" * 400),
    *(
        b"9" * 5000,
        b"-0",
        b"1e-400",
        b"12:30:45",
        b"2024-01-01",
        b'"\\ud800"',
        b'"\\Uffffffff"',
        b"[" * 40,
        b"{a: " * 40,
    ),
    *(b"!!python/object/apply:os.system ['touch " + MARKER.encode() + b"']", b"!!python/name:os.system"),
    *(b"!!python/object/apply:builtins.eval [\"open('" + MARKER.encode() + b"','w')\"]", b"{{7*7}}", b"${HOME}"),
    *(b"__import__('os')", b"../../../etc/passwd", b"/dev/zero", b"repeat: 1000000000", b"repeat: end"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 10**9, 10**18, 2**63, 10**300, -(10**12), 0.0, -0.0, 0.5, 1.5, 1e-9),
    *(
        1e18,
        1e300,
        -1e300,
        5e-324,
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        " ",
        "0",
        "1e3",
        "end",
        "null",
        "true",
    ),
    *(
        "x" * 10_000,
        "\x00",
        "\u2028",
        "\U0001d518",
        "a\nb",
        "../../x",
        "/dev/zero",
        ".",
        "*",
        "attn.0-999999999",
        "attn.*",
        "h.0",
    ),
    *("mlp.-1", "wte", "lm_head", "[0, 1]", "{}", "__class__", "name", "value", "%s%n", "${x}", "demo", [], {}, [[]]),
    *([None], [0], [0, 1], [0, 0, 1, 1], [-1], [10**9, 1], ["attn.0", 2], ["wte", 0], ["attn.0", -1], {"a": 1}),
    *([0] * 3000, list(range(500)), {"name": "stack_layers", "value": 2, "max_wait_iters": 0}, {"at_step": 5}),
    *({"all": [{"at_step": 1}, {"loss_below": 3}]}, {"any": []}, {"stage": "x"}, {"window": 5, "slope": 0.05}),
    *({"repeat": 9999, "operations": [{"name": "change_lr", "value": 0.5, "max_wait_iters": 1}]},),
    {"repeat": "end", "operations": [{"name": "stack_layers", "value": 2, "max_wait_iters": 0}]},
]

FITTING: list[Any] = [
    *(
        1.5,
        2,
        2,
        3,
        4,
        0.5,
        10,
        100,
        5000,
        10**6,
        10**9,
        1e15,
        8,
        16,
        64,
        "wte",
        "attn.*",
        "h.0-1",
        ["attn.0", "mlp.1"],
    ),
    *(
        ["attn.0", 4],
        ["mlp.1", 4],
        ["wte", 2],
        ["attn.1", 0],
        [0, 0, 1, 1],
        [0, 1, 0],
        [1, 0, 0],
        [0] * 300,
        [0, 1] * 2000,
    ),
]
"""Values that operations take."""


class Hang(BaseException):
    """Reading took too long. No `Exception`, so that nothing on the way takes it for a fault of the file."""


@dataclass(frozen=True)
class Case:
    """One mutated file.

    Attributes:
        kind: what reads it.
        suffix: of its name.
        content: its bytes.
    """

    kind: Kind
    suffix: str
    content: bytes


@cache
def sources(kind: Kind) -> tuple[Path, ...]:
    """The files of `configs/` that are read as `kind`."""
    folder = {"schedule": CONFIGS / "schedules", "plan": CONFIGS / "plans", "config": CONFIGS}[kind]
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".json")))


@cache
def _read(path: Path) -> tuple[bytes, str]:
    """A file's bytes, and what it says as JSON."""
    return path.read_bytes(), json.dumps(load_document(path).data)


def case(seed: int, index: int) -> Case:
    """Case `index`, of all kinds in turn."""
    rng = random.Random(f"{seed} {index}")
    kind = TURNS[index % len(TURNS)]
    raw, data = _read(rng.choice(sources(kind)))
    way = rng.random()
    if way < 0.3:
        return Case(kind, rng.choice([".yaml", ".yaml", ".json"]), _bytes(rng, raw))
    if way < 0.6:
        changed = _composed(rng, kind)
    else:
        other = json.loads(_read(rng.choice(sources(rng.choice(KINDS))))[1])
        changed = _structure(rng, json.loads(data), other)
    try:
        written = json.dumps(changed) if rng.random() < 0.7 else dump_yaml(changed)
    except (ValueError, RecursionError):  # more digits, or deeper, than can be written
        written = "[" * 5000
    content = written.encode("utf-8", "surrogatepass")
    return Case(kind, ".json" if written.startswith(("[", "{")) else ".yaml", content)


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, pieces cut, doubled and moved, tokens put in."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 5, 20, 200]))
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end] * rng.choice([1, 2, 30])
            case 3:
                data[at:at] = rng.choice(TOKENS)
            case 4:
                data[at:end] = rng.choice(TOKENS)
            case 5:
                lines = bytes(data).splitlines(keepends=True)
                rng.shuffle(lines)
                data = bytearray(b"".join(lines)) if rng.random() < 0.2 else data
            case _:
                del data[at : None if rng.random() < 0.2 else at + 1]
    return bytes(data)


def _composed(rng: random.Random, kind: Kind) -> Any:
    """Something new of the right form: operations in any order and number, with values near those they have."""
    if kind == "config":
        names = rng.sample(sorted(ALL), rng.choice([1, 2, 5]))
        return {name: copy.deepcopy(rng.choice([_default(name), *VALUES])) for name in names}
    operations = [_operation(rng) for _ in range(rng.choice([1, 2, 3, 10]))]
    if rng.random() < 0.3:
        at = rng.randrange(len(operations))
        times = rng.choice([1, 2, 5, 100, "end"])
        operations[at:] = [{"repeat": times, "operations": operations[at:]}]
    if kind == "schedule":
        return operations
    stage = {"dataset": "demo", "epochs": 1, "schedule": operations}
    return {"a": stage, "b": {**stage, "schedule": [_operation(rng)]}, "c": {"dataset": "demo", "steps": 5}}


def _default(name: str) -> Any:
    default = ALL[name].default.default
    return default if default is None or isinstance(default, bool | int | float | str) else None


@cache
def _operations() -> tuple[str, ...]:
    """Every operation of every schedule, as JSON."""
    found = [json.loads(_read(path)[1]) for path in sources("schedule")]
    lists = [data["operations"] if isinstance(data, dict) else data for data in found]
    entries = [entry for entries in lists for entry in entries]
    entries += [part for entry in entries for part in entry.get("operations", [])]
    return tuple(json.dumps(entry) for entry in entries if "operations" not in entry)


def _operation(rng: random.Random) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(rng.choice(_operations()))
    if not {"trigger_loss", "max_wait_iters", "when"} & set(entry):
        entry["max_wait_iters"] = rng.choice([0, 1, 100, 10**12])
    if entry.get("value") is not None and rng.random() < 0.2:
        entry["value"] = copy.deepcopy(rng.choice(FITTING))
    if rng.random() < 0.03:
        entry["value"] = _near(rng, entry.get("value"))
    return entry


def _structure(rng: random.Random, data: Any, other: Any) -> Any:
    """Values, keys and items replaced, renamed, dropped, doubled, nested and taken over from another file."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = list(_places(data))
        if not places:
            return copy.deepcopy(rng.choice(VALUES))
        holder, key = rng.choice(places)
        value = holder[key]
        match rng.randrange(9):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case 3:
                holder[key] = _near(rng, value)
            case 4:
                del holder[key]
            case 5 if isinstance(holder, list):
                holder[key:key] = [value] * rng.choice([1, 2, 200])
            case 5:
                holder[_near(rng, key)] = value
            case 6:
                found = list(_places(other))
                taken, name = rng.choice(found)
                holder[key] = taken[name]
            case 7:
                for _ in range(rng.choice([1, 2, 40, 500])):
                    value = [value] if rng.random() < 0.5 else {"operations": value}
                holder[key] = value
            case _:
                name, chosen = (
                    rng.choice(["repeat", "when", "completed", "defaults", "<<", "schedule"]),
                    copy.deepcopy(rng.choice(VALUES)),
                )
                if isinstance(holder, dict):
                    holder[name] = chosen
                else:
                    holder.append({name: chosen})
        if len(places) > 2000:
            break
    return data


def _places(data: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    if depth < 50 and isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from _places(data[key], depth + 1)


def _near(rng: random.Random, value: Any) -> Any:
    """Something like `value`."""
    match value:
        case bool():
            return int(value)
        case int() | float():
            return rng.choice(
                [-value, value + 1, value * 10**9, value / 7, float(value), str(value), [value], value - 1]
            )
        case str() if value:
            at = rng.randrange(len(value))
            return rng.choice(
                [value[:at] + value[at + 1 :], value * 2, value.upper(), value[at:], value + "\0", "_" + value]
            )
    return copy.deepcopy(rng.choice(VALUES))


@contextlib.contextmanager
def limited(seconds: float, megabytes: float) -> Iterator[None]:
    """Raises `Hang` in what takes longer than `seconds` of computing, and AssertionError after what takes more memory.

    The time is the process's own, so that a busy machine changes nothing; memory is the growth of its highest mark.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert taken < megabytes, f"took {taken:.0f} MB of memory"


def failing(seed: int, index: int, folder: Path, read: Callable[[Kind, Path], None]) -> str:
    """What goes wrong when case `index` is read; "" if nothing does.

    The file stays in `folder` if something does.
    """
    made = case(seed, index)
    path = folder / f"{made.kind}-{seed}-{index}{made.suffix}"
    path.write_bytes(made.content)
    environment = dict(os.environ)
    try:
        read(made.kind, path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is, it is a finding
        return f"seed {seed}, case {index} ({path}): {type(error).__name__}: {str(error)[:300]}"
    finally:
        if os.environ != environment:  # training arguments leave notes there
            os.environ.clear()
            os.environ.update(environment)
    path.unlink()
    return ""
