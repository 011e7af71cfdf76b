"""Whole checkpoints: a manifest that finds damage, and a store that makes one appear in a single step."""

from morphing_trainer.checkpoint.manifest import MANIFEST, check_listed, verify, write_manifest
from morphing_trainer.checkpoint.store import checkpoints, latest_valid, prune, publish, staging_folder, sweep

__all__ = [
    "MANIFEST",
    "check_listed",
    "checkpoints",
    "latest_valid",
    "prune",
    "publish",
    "staging_folder",
    "sweep",
    "verify",
    "write_manifest",
]
