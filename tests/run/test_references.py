from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.engine import grow
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.planning import operation_rng
from morphing_trainer.run.analysis import watched
from morphing_trainer.run.references import FILE, References
from morphing_trainer.schedule import Schedule
from tests.support import stirred, tiny_model

H = "transformer.h."


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    weights = dict(model.named_parameters())
    return {name: weights[name] for name in watched(ModelSpec.of(model))}


def moved(model: Any) -> Any:
    """As after some training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def after(model: Any, name: str, value: Any, references: References, **options: Any) -> tuple[Any, References]:
    operation: Any = Schedule.of([{"name": name, "value": value, "max_wait_iters": 0, **options}]).entries[0].operation
    groups = dict.fromkeys(ModelSpec.of(model).shapes, 0)
    grown = grow(operation, ModelSpec.of(model), model, {}, groups, operation_rng(0, 0))
    return grown.model, references.after(grown.morph.lineage, weights_of(grown.model))


def same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_both_points_are_copies_at_the_start() -> None:
    model = tiny_model()
    references = References.of(weights_of(model))
    before = {name: weight.detach().bfloat16().clone() for name, weight in weights_of(model).items()}
    moved(model)
    assert same(references.start, before) and same(references.since, before)
    assert all(references.start[name] is references.since[name] for name in before)  # held once


def test_copied_layers_keep_their_ancestors_start() -> None:
    model = tiny_model()
    references = References.of(weights_of(model))
    grown, now = after(moved(model), "stack_layers", 2, references)
    for new, old in ((0, 0), (1, 1), (2, 0), (3, 1)):
        for end in ("attn.c_attn.weight", "mlp.c_proj.weight"):
            assert now.start[f"{H}{new}.{end}"] is references.start[f"{H}{old}.{end}"]
    assert same(now.since, {name: weight.detach().bfloat16() for name, weight in weights_of(grown).items()})


def test_a_weight_of_another_shape_starts_at_the_operation() -> None:
    model = tiny_model()
    references = References.of(weights_of(model))
    grown, now = after(moved(model), "widen_mlp", 2, references)
    name = f"{H}0.mlp.c_fc.weight"
    assert now.start[name].shape == (16, 128) and now.start[name] is now.since[name]
    untouched = f"{H}0.attn.c_attn.weight"
    assert now.start[untouched] is references.start[untouched] is not now.since[untouched]
    assert set(now.start) == set(weights_of(grown))


def test_a_merge_keeps_the_start_of_the_weight() -> None:
    model = stirred(add_adapters(tiny_model(), LoraArguments(lora_r=2)))
    references = References.of(weights_of(model))
    _, now = after(model, "merge_lora_weights", None, references, restart=False)
    name = f"{H}0.attn.c_attn"
    assert now.start[f"{name}.weight"] is references.start[f"{name}.base_layer.weight"]
    assert not torch.equal(now.start[f"{name}.weight"], now.since[f"{name}.weight"])


def test_an_operation_on_settings_only_sets_the_second_point() -> None:
    model = tiny_model()
    references = References.of(weights_of(model))
    now = references.after(None, weights_of(moved(model)))
    assert same(now.start, references.start) and not same(now.since, references.since)


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    references = References.of(weights_of(tiny_model()))
    references.save(tmp_path)
    small = (tmp_path / FILE).stat().st_size
    names = list(references.start)
    loaded = References.load(tmp_path, names)
    assert loaded is not None and same(loaded.start, references.start) and same(loaded.since, references.start)
    grown, now = after(moved(tiny_model()), "stack_layers", 2, references)
    now.save(tmp_path)
    loaded = References.load(tmp_path, weights_of(grown))
    assert loaded is not None and same(loaded.start, now.start) and same(loaded.since, now.since)
    assert (tmp_path / FILE).stat().st_size > 1.5 * small  # what was the same had been written once


def test_without_a_file_nothing_is_known_and_stays_so(tmp_path: Path) -> None:
    assert References.load(tmp_path, ["x"]) is None
    now = References().after(None, weights_of(tiny_model()))
    assert now.start == {} and now.since.keys() == weights_of(tiny_model()).keys()
    now.save(tmp_path)
    loaded = References.load(tmp_path, list(now.since))
    assert loaded is not None and loaded.start == {} and same(loaded.since, now.since)
    (tmp_path / FILE).write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        References.load(tmp_path, ["x"])
