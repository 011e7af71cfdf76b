"""The plain model that a base and its adapters come to, made from files: the training beside it is not disturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

from morphing_trainer.offline.applying import planned, write_model
from morphing_trainer.offline.descendants import Descendants
from morphing_trainer.offline.source import open_source
from morphing_trainer.operations.lora import MergeLoraWeights


def merge(folder: Path, out: Path) -> None:
    """Write the model in `folder` as `out`, a new folder, with its adapters merged. No random number is drawn.

    Raises:
        ModelError, CheckpointError: if `folder` holds none.
    """
    source = open_source(str(folder))
    (step,) = planned([MergeLoraWeights(restart=False)], source.spec, seed=0)
    tensors = Descendants(step.morph.lineage, step.morph.spec, source.tensors)
    out.mkdir()
    for path in source.extras:
        shutil.copyfile(path, out / path.name)
    write_model(out, step.morph.spec, tensors, home=out)
