"""Every operation on one process, two (DDP), two that divide the model (FSDP2), and compiled: the same run.

Two steps, the operation, two steps; losses, evaluations, weights and moments are those of a single process that is not
compiled, up to `grid.TOLERANCE`. Here a slice of the cases; `-m long` goes through all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphing_trainer import morph
from morphing_trainer.operations import OPERATIONS
from tests.conformance.cases import ARCHITECTURE
from tests.conformance.common import with_history
from tests.conformance.grid import (
    GLOBAL_BATCH,
    TOLERANCE,
    Entry,
    Tour,
    Way,
    differences,
    entries,
    made,
    one_each,
    reference,
    result,
    toured,
)
from tests.support import Tokens
from tests.trainer.common import rates

REFUSED: dict[tuple[Way, str], str] = {("fsdp2", "adjust_batch_size"): "FSDP2 needs all of them for every step"}
"""(way, operation) -> what it is refused with."""
WAYS: tuple[Way, ...] = ("ddp", "compiled", "fsdp2")
SLOW = ("stack_layers", "widen_mlp", "set_mlp_width", "freeze_layer", "set_attn_lora_rank", "merge_lora_weights")
"""Compiling takes a second each time, and dividing a model another, so CI does it for these."""


def goes_as_alone(folder: Path, way: Way, cases: list[Entry]) -> None:
    tour = toured(Tour(folder / way, way, tuple(cases)))
    alone = toured(reference(tour))
    faults = []
    for entry in cases:
        ours = tour.found(entry)
        expected = REFUSED.get((way, entry.name))
        if expected is not None:
            faults += [] if expected in ours.get("refused", "") else [f"{entry.id}: is not refused"]
        else:
            faults += differences(entry, ours, alone.found(entry))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("way", WAYS)
def test_some_operations(tmp_path: Path, way: Way) -> None:
    cases = one_each(entries())
    assert {entry.name for entry in cases} == set(OPERATIONS)
    settings = ("set_batch_size", "adjust_batch_size")
    more = (*settings, "change_lr", "set_eval_iters", "advance_stage", "change_lora_alpha", "reset_optimizer_state")
    soon = {"ddp": (*SLOW, *more), "compiled": SLOW, "fsdp2": (*SLOW[:4], *settings)}
    goes_as_alone(tmp_path, way, [entry for entry in cases if entry.name in soon[way]])


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("way", WAYS)
def test_every_case(tmp_path: Path, way: Way, part: int) -> None:
    goes_as_alone(tmp_path, way, entries()[part::4])


@pytest.mark.parametrize("id", [case.id for case in one_each(entries()) if case.id in {c.id for c in ARCHITECTURE}])
def test_one_process_is_a_loop_by_hand(tmp_path: Path, id: str) -> None:
    """The same steps, by plain PyTorch and `morph`."""
    entry = next(entry for entry in entries() if entry.id == id)
    run = made(
        Tour(tmp_path, "single", (entry,)),
        entry,
        train_sampling_strategy="sequential",
        weight_decay=0.0,
        eval_strategy="no",
        eval_steps=None,
    )
    run.train()
    model, _ = with_history(entry.frozen, lora=entry.lora)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    losses = []
    for step, rate in enumerate(rates(run)):
        if step == 2:
            model, optimizer, _ = morph(model, entry.written, optimizer=optimizer, seed=run.args.seed)  # type: ignore[assignment]
        optimizer.param_groups[0]["lr"] = rate
        tokens = Tokens(101).tokens[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    found = result(run)
    assert found["losses"] == pytest.approx(losses, rel=TOLERANCE["losses"])
    theirs = dict(model.named_parameters())
    assert found["weights"].keys() == theirs.keys()
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, theirs[name].detach(), rtol=0, atol=1e-6, msg=name)
