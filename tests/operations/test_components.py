"""Names of components: what they resolve to, and what is said about those that name nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphing_trainer.errors import OperationError, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations.components import resolve
from morphing_trainer.operations.freezing import FreezeLayer, UnfreezeLayer
from morphing_trainer.schedule import Schedule
from tests.support import tiny_config

SPEC = ModelSpec(tiny_config(n_layer=12))
RNG = torch.Generator()


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("attn.2", ["attn.2"]),
        ("attn.1-3", ["attn.1", "attn.2", "attn.3"]),
        ("mlp.9-11", ["mlp.9", "mlp.10", "mlp.11"]),
        ("h.0-0", ["h.0"]),
        ("ln_1.1?", ["ln_1.10", "ln_1.11"]),
        ("mlp.[01]", ["mlp.0", "mlp.1"]),
        ("w*", ["wte", "wpe"]),
        ("*.3", ["attn.3", "mlp.3", "ln_1.3", "ln_2.3", "h.3"]),
        (["wte", "attn.0", "wte"], ["wte", "attn.0"]),
        ("ln_f", ["ln_f"]),
    ],
)
def test_patterns(patterns: str | list[str], found: list[str]) -> None:
    assert list(resolve(SPEC, patterns)) == found
    assert all(names == SPEC.expand(name) for name, names in resolve(SPEC, patterns).items())


def test_a_star_names_everything() -> None:
    assert frozenset().union(*resolve(SPEC, "*").values()) == set(SPEC.shapes)
    assert len(resolve(SPEC, "attn.*")) == 12


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("attn.12", r"'attn.12' names no component .* 12 layers; it has attn.0 to attn.11"),
        ("attn.10-12", r"'attn.10-12' names no component .* it has attn.0 to attn.11"),
        ("attn", "it has attn.0 to attn.11"),
        ("wte.0", "did you mean 'wte'"),
        ("h.-1", "it has h.0 to h.11"),
        ("z*", "names no component"),
    ],
)
def test_patterns_that_name_nothing_in_this_model(pattern: str, match: str) -> None:
    with pytest.raises(OperationError, match=match):
        resolve(SPEC, pattern)
    for operation in (FreezeLayer, UnfreezeLayer):
        with pytest.raises(OperationError, match=match):
            operation(value=pattern).morph(SPEC, RNG)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("atn.0", "'atn.0' names no component; did you mean 'attn'"),
        (["wte", "lm_haed"], "did you mean 'lm_head'"),
        ("attn.3-1", "runs backwards; write attn.1-3"),
        ("attn.x", r"after the dot comes a layer \(attn.0\), a range"),
        ([], "at least one component"),
    ],
)
def test_names_that_are_wrong_in_any_model_are_refused_when_read(value: Any, match: str) -> None:
    with pytest.raises(ScheduleError, match=match):
        Schedule.of([{"name": "freeze_layer", "value": value, "max_wait_iters": 1}])


def test_a_range_is_not_written_out_before_it_is_known_to_be_there() -> None:
    """It would fill the memory."""
    for last in ("99999999999", "9" * 30):
        with pytest.raises(OperationError, match="names no component of this model with"):
            FreezeLayer(value=f"attn.0-{last}").morph(SPEC, RNG)


def test_a_tied_head_is_frozen_with_the_embedding_or_not_at_all() -> None:
    for value in ("lm_head", ["lm_head", "h.0"], "lm_*"):
        with pytest.raises(
            OperationError, match=r"'lm_head' shares its weights with 'wte' .* freeze \['wte', 'lm_head'\]"
        ):
            FreezeLayer(value=value).morph(SPEC, RNG)
    assert FreezeLayer(value=["wte", "lm_head"]).morph(SPEC, RNG).spec.frozen == {"transformer.wte.weight"}
    assert FreezeLayer(value="wte").morph(SPEC, RNG).spec.frozen == {"transformer.wte.weight"}
    untied = ModelSpec(tiny_config(tie_word_embeddings=False))
    assert FreezeLayer(value="lm_head").morph(untied, RNG).spec.frozen == {"lm_head.weight"}


def test_freezing_adds_up_and_thawing_takes_away() -> None:
    once = FreezeLayer(value="h.0").morph(SPEC, RNG)
    twice = FreezeLayer(value=["attn.0", "mlp.1"]).morph(once.spec, RNG)
    assert twice.spec.frozen == SPEC.expand("h.0") | SPEC.expand("mlp.1")
    assert (once.note, twice.note) == ("", "already frozen: attn.0")
    thawed = UnfreezeLayer(value=["attn.0-1"]).morph(twice.spec, RNG)
    assert thawed.spec.frozen == twice.spec.frozen - SPEC.expand("attn.0")
    assert thawed.note == "not frozen before: attn.1"
    assert SPEC.frozen == frozenset()


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(OperationError, match="nothing would be left to train"):
        FreezeLayer(value="*").morph(SPEC, RNG)
    nearly = FreezeLayer(value=["h.*", "w*"]).morph(SPEC, RNG).spec
    with pytest.raises(OperationError, match="nothing would be left to train"):
        FreezeLayer(value="ln_f").morph(nearly, RNG)
