"""Text of a run on a page: escaped, and without what would disturb what stands beside it. Everything may be hostile."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from markupsafe import Markup, escape

# No control characters but tab and line end, no surrogates (UTF-8 has none), no non-characters (HTML allows none), and
# nothing that turns the direction of what follows.
_UNFIT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
_LAST = "".join(chr(0x10000 * plane + end) for plane in range(1, 17) for end in (0xFFFE, 0xFFFF))
_PLANES = re.compile(f"[{_LAST}]")
_NAME = re.compile(r"[A-Za-z_][\w:.-]*")


def safe(value: Any) -> Any:
    """What a template may show: markup as it is, other things as text, what is unfit in it replaced by U+FFFD."""
    return value if isinstance(value, Markup) else readable(str(value))


def readable(text: str) -> str:
    """`text` with U+FFFD for every character that a page cannot hold, and one kind of line end."""
    return _PLANES.sub("\ufffd", _UNFIT.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")))


def cut(text: str, most: int) -> str:
    """At most so many characters; where some are left out, it says how many."""
    return text if len(text) <= most else f"{text[:most]}\u2026 ({len(text) - most:,} more characters)"


def el(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element. Children and values are escaped unless they are markup; `None` and False leave one out.

    `class_` is `class`, and `_` in names is `-`, but for `viewBox` and the like, which have none.
    """
    parts = [f"<{_checked(tag)}"]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        shown = fnum(value) if isinstance(value, float) else "" if value is True else value
        parts.append(f' {_checked(name.rstrip("_").replace("_", "-"))}="{escape(safe(shown))}"')
    inside = "".join(str(escape(safe(child))) for child in children if child is not None and child is not False)
    return Markup(f"{''.join(parts)}>{inside}</{tag}>")


def joined(parts: Any) -> Markup:
    """Pieces of markup, one after the other; what is none is escaped."""
    return Markup("".join(str(escape(safe(part))) for part in parts))


def fnum(value: float) -> str:
    """A coordinate: two decimals at most, no `-0`.

    Raises:
        ValueError: if it is NaN or infinite, which no picture can show.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is no coordinate")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def data(value: Any) -> Markup:
    """JSON for a `<script type="application/json">`: no character of it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an element or attribute")
    return name
