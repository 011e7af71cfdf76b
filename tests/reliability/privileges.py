"""Files that must not be read or written, also for a test that is run by root, who may do everything."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_VERSION = 0x20080522


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions count in this block, of this thread. Elsewhere than on Linux, root must not run the tests."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, before, now = _Header(_VERSION, 0), (_Sets * 2)(), (_Sets * 2)()
    assert libc.capget(ctypes.byref(header), before) == 0
    for old, new in zip(before, now, strict=True):
        new.permitted, new.inheritable = old.permitted, old.inheritable
    assert libc.capset(ctypes.byref(header), now) == 0
    try:
        yield
    finally:
        assert libc.capset(ctypes.byref(header), before) == 0
