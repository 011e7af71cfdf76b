"""The rows of a transplant, computed by themselves, are those of the whole: for every operation, weight and moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from morphing_trainer.lineage import Descent, Merged, Truncated
from morphing_trainer.lineage.rows import has_newborn_entries, restricted
from morphing_trainer.lineage.transplant import MOMENT_ORDER, Whole
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import described, named, of, states

PROCESSES = 5
"""More than some matrices have rows."""


def shares(rows: int) -> Iterator[range]:
    """The rows of each process, as FSDP2 divides them."""
    each = -(-rows // PROCESSES)
    for number in range(PROCESSES):
        yield range(min(number * each, rows), min((number + 1) * each, rows))


@pytest.mark.parametrize("case", ARCHITECTURE, ids=lambda case: case.id)
def test_rows_are_those_of_the_whole(case: Case) -> None:
    model, optimizer = of(case)
    morph, old = described(case, model), {name: weight.detach() for name, weight in named(model).items()}
    memory, computed = states(model, optimizer), Whole({**old})
    for name, origin in morph.lineage.origins.items():
        if isinstance(origin, Truncated) or (isinstance(origin, Descent) and not origin.maps):
            continue
        whole = computed.weight(name, origin)
        if isinstance(origin, Merged):  # of the old weight, too, only these rows are needed
            parts = [
                computed.factors.merged(origin, old[origin.ancestor][r.start : r.stop], r) for r in shares(len(whole))
            ]
            torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)
            continue
        cut = [restricted(origin, whole.shape, rows) for rows in shares(len(whole))]
        if None in cut:
            assert draws(origin)
            continue
        same([computed.weight(name, part) for part in cut if part is not None], whole)
        if isinstance(origin, Descent) and origin.moments == "carried":
            for key, value in memory[origin.ancestor].items():
                if value.ndim == 0 or (MOMENT_ORDER[key] == 2 and has_newborn_entries(origin)):
                    continue
                moments: list[Any] = [computed.moment(name, key, value, part, {}) for part in cut]  # type: ignore[arg-type]
                same(moments, computed.moment(name, key, value, origin, {}))


def same(parts: list[Tensor], whole: Tensor) -> None:
    assert len(parts) == PROCESSES
    assert torch.equal(torch.cat(parts), whole)


def draws(origin: Any) -> bool:
    """Whether random numbers are drawn for the tensor, which is possible for all of it only."""
    return bool(origin.fill.std) or getattr(origin, "noise", None) is not None
