"""Import what takes long to import, in less time."""

from __future__ import annotations

import gc
from importlib import import_module
from types import ModuleType


def imported(name: str) -> ModuleType:
    """Import a module, and collect no garbage meanwhile.

    What modules make stays; to look through it again and again, while torch and transformers are imported, takes time
    and finds nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if collects:
            gc.enable()
