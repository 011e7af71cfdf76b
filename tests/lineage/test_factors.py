"""Merges and rank changes against full-size decompositions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from morphing_trainer.lineage import Lineage, Merged, Product, Truncated, lost, transplant_weights
from morphing_trainer.lineage.factors import Factors, decompose

OUT, IN = 12, 20


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def adapter(rank: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    return {
        "a": drawn(rank, IN, seed=seed, dtype=dtype),
        "b": drawn(OUT, rank, seed=seed + 1, dtype=dtype),
        "w": drawn(OUT, IN, seed=seed + 2, dtype=dtype),
    }


def reranked(rank: int, old: float = 0.7, new: float = 1.9, transposed: bool = False, by_a: bool = True) -> Lineage:
    """Lineage of an adapter of scaling `old` that gets this rank and scaling `new`, the rest merged."""
    product = Product("a", "b", old)
    start = "a" if by_a else "b"
    return Lineage(
        {
            "w": Merged("w", product, transposed, beyond=rank),
            "a": Truncated("a", product, rank, new, start),
            "b": Truncated("b", product, rank, new, start),
        }
    )


@given(
    rank=st.integers(1, 15),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    zero=st.sampled_from(["", "a", "b", "ab", "part"]),
)
def test_thin_decomposition_is_that_of_the_whole_product(rank: int, shape: tuple[int, int], zero: str) -> None:
    a, b = drawn(rank, shape[1], seed=1), drawn(shape[0], rank, seed=2)
    a, b = (torch.zeros_like(each) if name in zero.replace("part", "") else each for name, each in (("a", a), ("b", b)))
    if zero == "part":
        b[:, rank // 2 :] = 0
    found = decompose(a, b)
    count = min(rank, *shape)
    assert (found.left.shape, found.values.shape, found.right.shape) == (
        (shape[0], count),
        (count,),
        (count, shape[1]),
    )
    torch.testing.assert_close(found.values, torch.linalg.svdvals(b @ a)[:count], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found.left * found.values @ found.right, b @ a, rtol=1e-11, atol=1e-12)
    for basis in (found.left, found.right.T):
        torch.testing.assert_close(basis.T @ basis, torch.eye(count).double(), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("by_a", [True, False], ids=["matrix", "embedding"])
@pytest.mark.parametrize("rank", range(1, 6))
def test_truncation_is_the_best_approximation(rank: int, by_a: bool) -> None:
    """Eckart-Young: no matrix of this rank is nearer."""
    old = adapter(6)
    new = transplant_weights(reranked(rank, by_a=by_a), old)
    u, values, v = torch.linalg.svd(0.7 * old["b"] @ old["a"], full_matrices=False)
    best = u[:, :rank] * values[:rank] @ v[:rank]
    assert (new["a"].shape, new["b"].shape) == ((rank, IN), (OUT, rank))
    torch.testing.assert_close(1.9 * new["b"] @ new["a"], best, rtol=1e-12, atol=1e-12)
    error = float(torch.linalg.norm(0.7 * old["b"] @ old["a"] - 1.9 * new["b"] @ new["a"]))
    assert error == pytest.approx(float(values[rank:].norm()), rel=1e-11)
    dropped = Lineage({name: origin for name, origin in reranked(rank).origins.items() if name != "w"})
    assert lost(dropped, old) == pytest.approx((error, float(values.norm())), rel=1e-11)
    assert lost(reranked(rank), old) == (0.0, 0.0), "nothing is, when the rest is merged"


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("rank", [1, 4, 5])
def test_what_is_cut_off_goes_into_the_weight(rank: int, transposed: bool) -> None:
    old = adapter(6)
    whole = old["w"] + 0.7 * old["b"] @ old["a"]
    stored = {**old, "w": old["w"].T.contiguous()} if transposed else old
    new = transplant_weights(reranked(rank, transposed=transposed), stored)
    weight = new["w"].T if transposed else new["w"]
    torch.testing.assert_close(weight + 1.9 * new["b"] @ new["a"], whole, rtol=1e-13, atol=1e-13)
    assert (weight - old["w"]).abs().max() > 1e-3
    merged = transplant_weights(Lineage({"w": Merged("w", Product("a", "b", 0.7), transposed)}), stored)["w"]
    torch.testing.assert_close(merged.T if transposed else merged, whole, rtol=1e-13, atol=1e-13)
    assert new["w"].data_ptr() != stored["w"].data_ptr()
    assert torch.equal(old["w"], adapter(6)["w"])


@pytest.mark.parametrize("by_a", [True, False], ids=["matrix", "embedding"])
def test_an_adapter_that_has_learnt_nothing_can_still_learn_at_a_lower_rank(by_a: bool) -> None:
    """Its product is zero and has no directions; the drawn matrix must not become zero with it."""
    old = adapter(6)
    zeroed, start = ("b", "a") if by_a else ("a", "b")
    old[zeroed] = torch.zeros_like(old[zeroed])
    new = transplant_weights(reranked(4, by_a=by_a), old)
    assert torch.equal(new["w"], old["w"])
    assert not new[zeroed].any()
    lengths = torch.linalg.norm(new[start], dim=1 if by_a else 0)
    typical = float(torch.linalg.norm(old[start])) / 6**0.5
    torch.testing.assert_close(lengths, torch.full((4,), typical, dtype=torch.float64), rtol=1e-12, atol=0.0)
    gram = new[start] @ new[start].T if by_a else new[start].T @ new[start]
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0.0, atol=1e-12)


def test_the_drawn_matrix_keeps_its_length_whatever_the_other_has_learnt() -> None:
    old = adapter(6)
    typical = float(torch.linalg.norm(old["a"])) / 6**0.5
    for scale in (1e-6, 1.0, 1e3):
        new = transplant_weights(reranked(3), {**old, "b": old["b"] * scale})
        lengths = torch.linalg.norm(new["a"], dim=1)
        torch.testing.assert_close(lengths, torch.full((3,), typical, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_an_adapter_of_zeros_alone_stays_finite() -> None:
    old = {name: torch.zeros_like(tensor) for name, tensor in adapter(6).items()}
    new = transplant_weights(reranked(2), old)
    assert all(torch.isfinite(tensor).all() for tensor in new.values())
    assert not (new["b"] @ new["a"]).any()
    assert lost(Lineage({"a": Truncated("a", Product("a", "b", 1.0), 2, 1.0, "a")}), old) == (0.0, 0.0)


@pytest.mark.parametrize("beyond", [0, 3])
def test_a_merge_into_bfloat16_rounds_once(beyond: int) -> None:
    old = adapter(6, torch.float32)
    old["w"] = old["w"].bfloat16()
    a, b, w = (old[name].double() for name in ("a", "b", "w"))
    u, values, v = torch.linalg.svd(b @ a, full_matrices=False)
    exact = w + 0.7 * (u[:, beyond:] * values[beyond:]) @ v[beyond:]
    merged = transplant_weights(Lineage({"w": Merged("w", Product("a", "b", 0.7), False, beyond)}), old)["w"]
    assert merged.dtype == torch.bfloat16
    spacing = 2.0 ** (torch.floor(torch.log2(exact.abs())) - 7)
    assert ((merged.double() - exact).abs() <= 0.5001 * spacing).all(), "the nearest number there is"
    if not beyond:
        naive = old["w"] + (0.7 * old["b"].bfloat16() @ old["a"].bfloat16())
        assert ((naive.double() - exact).abs() > 0.5001 * spacing).any(), "the control: rounded on the way"


@pytest.mark.parametrize(
    ("base", "added"),
    [(torch.float64, torch.float32), (torch.float32, torch.float64), (torch.float16, torch.float32)],
    ids=str,
)
def test_base_and_adapter_of_different_types(base: torch.dtype, added: torch.dtype) -> None:
    old = adapter(6, added)
    old["w"] = old["w"].to(base)
    new = transplant_weights(reranked(2), old)
    assert [new[name].dtype for name in ("w", "a", "b")] == [base, added, added]
    whole = old["w"].double() + 0.7 * old["b"].double() @ old["a"].double()
    found = new["w"].double() + 1.9 * new["b"].double() @ new["a"].double()
    torch.testing.assert_close(found, whole, rtol=0.0, atol=5e-3 if base == torch.float16 else 1e-5)


def test_a_product_is_decomposed_once_for_all_that_descend_from_it() -> None:
    factors = Factors(adapter(6))
    assert factors.directions(Product("a", "b", 0.7)) is factors.directions(Product("a", "b", 0.7))
