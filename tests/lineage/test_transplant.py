"""Transplant against a naive implementation that visits every entry."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphing_trainer.errors import OperationError
from morphing_trainer.lineage import (
    MOMENT_ORDER,
    NEWBORN,
    AxisMap,
    Census,
    Descent,
    Fill,
    Lineage,
    Merged,
    Newborn,
    Product,
    Truncated,
    transplant_states,
    transplant_weights,
)

FACTORS = st.floats(-2, 2, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def descents(draw: st.DrawFn) -> tuple[Tensor, Descent]:
    """A tensor of one to three dimensions, some of which are gathered, scaled and partly newborn."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    old = torch.arange(1.0, torch.Size(shape).numel() + 1, dtype=torch.float64).view(shape)
    maps = []
    for dim in sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))):
        source = draw(st.lists(st.integers(NEWBORN, shape[dim] - 1), min_size=1, max_size=7))
        weight, grad = (
            draw(st.none() | st.lists(FACTORS, min_size=len(source), max_size=len(source))) for _ in range(2)
        )
        maps.append(
            AxisMap(
                dim, torch.tensor(source), *(None if f is None else torch.tensor(f).double() for f in (weight, grad))
            )
        )
    return old, Descent("old", tuple(maps))


def naive(old: Tensor, descent: Descent, kind: str, power: int = 1) -> tuple[Tensor, Tensor]:
    """The new tensor entry by entry, and which of its entries have an ancestor."""
    shape = list(old.shape)
    for entry in descent.maps:
        shape[entry.dim] = len(entry.source)
    new, live = torch.zeros(shape, dtype=old.dtype), torch.ones(shape, dtype=torch.bool)
    for place in itertools.product(*map(range, shape)):
        at, factor = list(place), 1.0
        for entry in descent.maps:
            at[entry.dim] = int(entry.source[place[entry.dim]])
            factors = getattr(entry, kind)
            factor *= 1.0 if factors is None else float(factors[place[entry.dim]]) ** power
        live[place] = NEWBORN not in at
        new[place] = old[tuple(at)] * factor if live[place] else 0.0
    return new, live


@given(descents())
def test_weights(drawn: tuple[Tensor, Descent]) -> None:
    old, descent = drawn
    kept = old.clone()
    new = transplant_weights(Lineage({"new": descent}), {"old": old})["new"]
    torch.testing.assert_close(new, naive(old, descent, "weight")[0], rtol=1e-14, atol=0.0)
    assert torch.equal(old, kept)
    assert new.untyped_storage().data_ptr() != old.untyped_storage().data_ptr()


@given(descents(), st.sampled_from(sorted(MOMENT_ORDER)))
def test_moments(drawn: tuple[Tensor, Descent], key: str) -> None:
    old, descent = drawn
    new, live = naive(old, descent, "grad", MOMENT_ORDER[key])
    if MOMENT_ORDER[key] == 2 and live.any():
        new[~live] = new[live].mean()
    state = {"step": torch.tensor(7.0), key: old}
    moved, census = transplant_states(Lineage({"new": descent}), {"old": state}, {"new": new.numel()}, frozenset())
    torch.testing.assert_close(moved["new"][key], new, rtol=1e-12, atol=1e-12)
    assert moved["new"]["step"] == 7.0
    assert moved["new"]["step"] is not state["step"]
    scaled = naive(torch.ones_like(old), descent, "grad")[0][live] != 1
    # A factor of exactly 1 counts per axis, so factors that cancel across axes are still scaled.
    assert census.newborn == int((~live).sum())
    assert census.carried + census.scaled == int(live.sum())
    assert census.scaled >= int(scaled.sum())


def test_two_axes_are_the_same_in_one_step_or_two() -> None:
    old = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = AxisMap(0, torch.tensor([3, 0, NEWBORN, 0]), torch.tensor([0.5, 2.0, 1.0, 3.0]).double())
    columns = AxisMap(1, torch.tensor([5, 5, 1]), torch.tensor([0.25, 0.75, 1.0]).double())

    def once(tensor: Tensor, *maps: AxisMap) -> Tensor:
        return transplant_weights(Lineage({"p": Descent("p", maps)}), {"p": tensor})["p"]

    assert torch.equal(once(old, rows, columns), once(once(old, rows), columns))
    assert torch.equal(once(old, columns, rows), once(once(old, columns), rows))
    torch.testing.assert_close(once(old, rows, columns), once(old, columns, rows), rtol=1e-15, atol=0.0)
    source = torch.tensor([2, 0, 1, 1])
    assert torch.equal(once(once(old, AxisMap(0, source)), AxisMap(0, source)), old[source][source])
    assert torch.equal(once(old, AxisMap(0, torch.tensor([1]))), old[1:2]), "fewer entries are a gather too"


def test_newborn_entries_are_filled_from_their_seed() -> None:
    old, source = torch.ones(2, 3), torch.tensor([0, 1, NEWBORN, NEWBORN])
    born = Descent("p", (AxisMap(0, source),), fill=Fill(std=0.5, seed=4))
    made = {seed: Descent("p", born.maps, fill=Fill(0.5, seed)) for seed in (4, 5)}
    made_tensors = {
        seed: transplant_weights(Lineage({"p": descent}), {"p": old})["p"] for seed, descent in made.items()
    }
    state = torch.get_rng_state()
    again = transplant_weights(Lineage({"p": born}), {"p": old})["p"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again, made_tensors[4])
    assert not torch.equal(made_tensors[4][2:], made_tensors[5][2:])
    assert torch.equal(again[:2], old)
    assert again[2:].unique().numel() == 6
    large = Descent("p", (AxisMap(0, torch.tensor([0] + [NEWBORN] * 4000)),), fill=Fill(0.5, 1))
    drawn = transplant_weights(Lineage({"p": large}), {"p": old})["p"][1:]
    assert abs(float(drawn.std()) - 0.5) < 0.02
    assert abs(float(drawn.mean())) < 0.02
    narrow = transplant_weights(Lineage({"p": born}), {"p": old.bfloat16()})["p"]
    assert torch.equal(narrow, again.bfloat16()), "the same numbers in every dtype"


def test_a_parameter_that_is_newborn_as_a_whole() -> None:
    old = torch.ones(3, 2, dtype=torch.bfloat16)
    lineage = Lineage({"kept": Descent("p"), "zero": Newborn("p"), "drawn": Newborn("p", Fill(1.0, 3))})
    new = transplant_weights(lineage, {"p": old})
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    assert {tensor.shape for tensor in new.values()} == {old.shape}
    assert not new["zero"].any()
    assert new["drawn"].unique().numel() > 3
    assert torch.equal(old, torch.ones_like(old))
    states, census = transplant_states(lineage, {"p": _adam(old)}, dict.fromkeys(new, 6), frozenset())
    assert list(states) == ["kept"]
    assert census == Census(carried=6, newborn=12)


def test_a_parameter_of_another_shape_and_a_wider_type() -> None:
    lineage = Lineage(
        {"wide": Newborn("p", Fill(1.0, 3), (4, 5), wide=True), "same": Newborn("p", Fill(1.0, 3), (4, 5))}
    )
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        new = transplant_weights(lineage, {"p": torch.ones(3, 2, dtype=dtype)})
        assert (new["wide"].dtype, new["same"].dtype) == (wide, dtype)
        assert {tensor.shape for tensor in new.values()} == {(4, 5)}
        assert torch.equal(new["same"], new["wide"].to(dtype))


def test_what_is_computed_anew_starts_without_memory() -> None:
    product = Product("a", "b", 1.0)
    lineage = Lineage(
        {
            "w": Merged("w", product, transposed=False, beyond=1),
            "a": Truncated("a", product, 1, 1.0, "a"),
            "b": Truncated("b", product, 1, 1.0, "a"),
            "c": Descent("c"),
        }
    )
    old = {"w": torch.ones(3, 4), "a": torch.ones(2, 4), "b": torch.ones(3, 2), "c": torch.ones(5)}
    states, census = transplant_states(
        lineage, {name: _adam(old[name]) for name in "abc"}, {"w": 12, "a": 4, "b": 3, "c": 5}, {"w"}
    )
    assert list(states) == ["c"]
    assert census == Census(carried=5, newborn=4 + 3, dropped=8 + 6)
    assert lineage.inherit(frozenset({"w", "a"})) == {"w", "a"}
    assert [lineage.kin(name) for name in "wab"] == ["w", "a", "b"]


def test_noise_disturbs_second_copies_only() -> None:
    old = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = torch.cat([torch.arange(4), torch.tensor([2, 0, 2])])
    descent = Descent("p", (AxisMap(1, source),), noise=Fill(0.01, 5))
    new = transplant_weights(Lineage({"p": descent}), {"p": old})["p"]
    assert torch.equal(new[:, :4], old)
    difference = new[:, 4:] - old[:, source[4:]]
    assert (difference.std(0) > 0.005 * old.std()).all()
    assert (difference.std(0) < 0.02 * old.std()).all()


def _adam(like: Tensor) -> dict[str, Any]:
    return {"step": torch.tensor(3.0), "exp_avg": torch.ones_like(like), "exp_avg_sq": torch.ones_like(like)}


def test_an_unchanged_tensor_is_moved_once_and_copied_for_every_further_child() -> None:
    old = torch.ones(2, 2)
    lineage = Lineage({"a": Descent("p"), "b": Descent("p"), "c": Descent("p")})
    new = transplant_weights(lineage, {"p": old})
    assert new["a"].data_ptr() == old.data_ptr()
    assert len({tensor.data_ptr() for tensor in new.values()}) == 3
    states, census = transplant_states(lineage, {"p": _adam(old)}, dict.fromkeys("abc", 4), frozenset())
    assert len({id(tensor) for state in states.values() for tensor in state.values()}) == 9
    states["b"]["step"] += 1
    assert states["a"]["step"] == states["c"]["step"] == 3
    assert census == Census(carried=12)


def test_the_census_counts_scalars() -> None:
    old, maps = (
        torch.ones(4, 2),
        (AxisMap(0, torch.tensor([0, 1, 1, NEWBORN]), grad=torch.tensor([1, 0.5, 0.5, 1]).double()),),
    )
    lineage = Lineage(
        {"wide": Descent("wide", maps), "cold": Descent("cold"), "fresh": Descent("fresh", moments="newborn")}
    )
    states = {name: _adam(old) for name in ("wide", "cold", "fresh", "gone")}
    new, census = transplant_states(lineage, states, dict.fromkeys(("wide", "cold", "fresh"), 8), {"cold"})
    assert census == Census(carried=2, scaled=4, newborn=2 + 8, dropped=8 + 8)
    assert list(new) == ["wide"]


def test_state_that_is_not_per_entry_is_carried_and_the_rest_refused_by_name() -> None:
    lineage = Lineage({"p": Descent("p", (AxisMap(0, torch.tensor([0, 0])),))})
    state = {"step": 4, "nothing": None, "mu_product": torch.tensor(0.5), "exp_avg": torch.ones(2)}
    new, _ = transplant_states(lineage, {"p": state}, {"p": 2}, frozenset())
    assert (new["p"]["step"], new["p"]["nothing"], float(new["p"]["mu_product"])) == (4, None, 0.5)
    with pytest.raises(OperationError, match=r"'trust' has no rule for a parameter that changes shape \(p\)"):
        transplant_states(lineage, {"p": {"trust": torch.ones(2)}}, {"p": 2}, frozenset())
