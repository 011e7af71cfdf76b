"""The pictures of the network: what they show is what the model is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from morphing_trainer import LoraArguments, add_adapters
from morphing_trainer.reporting.records import Record
from morphing_trainer.reporting.report.drawing import in_words, pictures
from morphing_trainer.reporting.report.network import HELD, PARTLY, TRAINED, Network, Part, network_of, phases_of
from tests.reporting.report.support import SPEC, all_of, read, spec_of, story, with_operations
from tests.support import tiny_model

PLAIN = (Part(), Part())


def drawn(*networks: Network) -> list[Element]:
    body = "".join(str(picture) for picture in pictures(networks))
    return all_of(read(f"<!DOCTYPE html><html><head><title>t</title></head><body>{body}</body></html>"), "svg")


def widths(picture: Element, look: str) -> list[float]:
    return [float(rect.get("width", "")) for rect in all_of(picture, "rect", class_=look)]


def test_a_plain_model() -> None:
    assert network_of(spec_of(tiny_model())) == Network(16, 64, (PLAIN, PLAIN))
    free = network_of(spec_of(tiny_model(tie_word_embeddings=False, n_inner=32)))
    assert free == Network(16, 32, (PLAIN, PLAIN), head=Part())


def test_what_is_frozen() -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        held = name.startswith(("transformer.wte", "transformer.h.0.attn")) or name == "transformer.h.1.mlp.c_fc.weight"
        parameter.requires_grad_(not held)
    found = network_of(spec_of(model))
    assert found is not None and (found.tokens, found.positions) == (Part(HELD), Part())
    assert found.layers == ((Part(HELD), Part()), (Part(), Part(PARTLY)))
    assert in_words(found) == (
        "2 blocks, 16 wide, MLP 64; attention of block 0 not trained; MLP of block 1 trained in part; "
        "token embedding not trained; output head is the token embedding"
    )


def test_adapters_with_ranks_of_their_own() -> None:
    """Under an adapter a weight has another name, and is not trained."""
    chosen = LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=8)
    found = network_of(spec_of(add_adapters(tiny_model(), chosen)))
    assert found is not None and found.tokens == Part(HELD, 2)
    assert found.layers == ((Part(HELD, 4), Part()), (Part(HELD, 4), Part()))


@pytest.mark.parametrize(
    "spec",
    [
        None,
        3,
        "x",
        {},
        {**SPEC, "config": {"n_layer": -1, "n_embd": 16}},
        {**SPEC, "config": {"n_layer": 1, "n_embd": "<"}},
        {**SPEC, "config": {"n_layer": 10**9, "n_embd": 16}},
        {**SPEC, "adapter": {"target_modules": 3}},
    ],
)
def test_what_describes_no_network(spec: Any) -> None:
    assert network_of(spec) is None


def test_all_pictures_are_on_one_scale() -> None:
    small, large = Network(16, 32, (PLAIN,)), Network(32, 64, (PLAIN,) * 4)
    first, last = drawn(small, large)
    for look, one, other in (("attention", 1, 4), ("mlp", 1, 4)):
        assert len(widths(first, look)) == one and len(widths(last, look)) == other
        assert widths(last, look)[0] == pytest.approx(2 * widths(first, look)[0], abs=0.02)
    unit = (200 - 2 * 6 - 2 * 3) / (32 + 64)
    assert widths(last, "mlp")[0] == pytest.approx(64 * unit, abs=0.01)
    assert first.get("viewBox") == last.get("viewBox"), "the floor is at one height"
    highest = [min(float(rect.get("y", "")) for rect in all_of(picture, "rect")) for picture in (first, last)]
    assert highest[1] < highest[0], "the deeper one is higher"


def test_parts_are_told_apart_by_more_than_their_place() -> None:
    held = Network(16, 64, ((Part(HELD, 4), Part(PARTLY)),), tokens=Part(HELD), head=Part(TRAINED))
    (picture,) = drawn(held)
    looks = [rect.get("class") for rect in all_of(picture, "rect")]
    assert looks == [
        *("part embedding trained", "part embedding held"),
        *("part attention held", "part adapter", "part mlp partly", "part head trained"),
    ]
    attention, adapter = all_of(picture, "rect", class_="attention")[0], all_of(picture, "rect", class_="adapter")[0]
    right = [float(rect.get("x", "")) + float(rect.get("width", "")) for rect in (attention, adapter)]
    assert right[0] == pytest.approx(right[1]) and widths(picture, "adapter") == [pytest.approx(9.1)], "4 of 16 units"


def test_very_deep_networks_stay_small() -> None:
    mixed = tuple((Part(HELD if number % 2 else TRAINED), Part()) for number in range(1000))
    alike = (PLAIN,) * 1000
    first, last = drawn(Network(16, 64, mixed), Network(16, 64, alike))
    assert len(all_of(first, "rect")) <= 125 and len(widths(last, "attention")) == 1
    assert all("partly" in rect.get("class", "") for rect in all_of(first, "rect", class_="attention"))
    high = sum(float(rect.get("height", "")) for rect in all_of(last, "rect", class_="attention"))
    assert high == pytest.approx(150, abs=3)
    assert pictures([None]) == [None]


def test_phases_lie_between_the_operations_that_change_the_network(record: Callable[..., Record]) -> None:
    deeper = {**SPEC, "config": {**SPEC["config"], "n_layer": 8}}
    frozen = {
        **deeper,
        "frozen": [f"transformer.h.{layer}.mlp.{name}.weight" for layer in range(8) for name in ("c_fc", "c_proj")],
    }
    records = [record(1, 20), record(2, 50), record(3, 100), record(4, 150)]
    specs = [SPEC, deeper, frozen, frozen]
    told = with_operations(records)
    operations = [
        {"event": "operation", "step": each.step, "index": each.index, "spec": spec}
        for each, spec in zip(records, specs, strict=True)
    ]
    told = replace(told, events=[*told.events, *operations])
    phases = phases_of(told)
    assert [(phase.first, phase.last) for phase in phases] == [(0, 50), (50, 100), (100, 200)]
    assert [[(number, each.operation) for number, each in phase.causes] for phase in phases] == [
        [], [(2, "stack_layers")], [(3, "freeze_layer")]
    ]  # fmt: skip
    assert [phase.facts["layers"] for phase in phases] == [4, 8, 8]
    assert [len(phase.network.layers) for phase in phases if phase.network] == [2, 8, 8]
    losses = dict(told.points("eval_loss"))
    assert [phase.loss for phase in phases] == [(step, losses[step]) for step in (50, 100, 200)]
    without = phases_of(with_operations(records))
    assert [phase.network is None for phase in without] == [False, True, True], "what the journal does not tell"


def test_a_run_without_operations_is_one_phase() -> None:
    (phase,) = phases_of(story())
    assert (phase.first, phase.last, phase.causes) == (0, 200, ()) and phase.facts["parameters"] == 1000
    (unknown,) = phases_of(story(events=[], lines=[]))
    assert unknown.network is None and unknown.loss is None
