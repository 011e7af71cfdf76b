"""What every architecture operation does to the optimizer's memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import GPT2LMHeadModel

from morphing_trainer import Morphed, morph
from morphing_trainer.lineage import Descent
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import adamw, described, expected, named, of, states, train, with_history

every_case = pytest.mark.parametrize("case", ARCHITECTURE, ids=lambda case: case.id)
MOMENTS = {"exp_avg": 1, "exp_avg_sq": 2}
RATE = 1e-3


@pytest.mark.parametrize(
    ("case", "tied", "dtype"),
    [
        pytest.param(case, tied, dtype, id=f"{case.id}-{'tied' if tied else 'untied'}-{str(dtype)[6:]}")
        for case in ARCHITECTURE
        for tied in (True, False)
        for dtype in (torch.float64, torch.float32)
        if not case.lora or tied == (dtype == torch.float64)  # two of the four do where the models are slow to build
    ],
)
def test_moments_follow_the_lineage(case: Case, tied: bool, dtype: torch.dtype) -> None:
    model, optimizer = of(case, dtype=dtype, tied=tied)
    before = states(model, optimizer)
    lineage = described(case, model).lineage
    new, new_optimizer, record = morph(model, case.written, optimizer)
    after = states(new, new_optimizer)
    counts = dict.fromkeys(record.moments, 0)
    seen: set[str] = set()
    for name, parameter in named(new).items():
        origin, state = lineage.origins[name], after[name]
        if not parameter.requires_grad:
            assert not state, f"{name} is frozen and keeps no memory"
            continue
        old = before[origin.ancestor] if isinstance(origin, Descent) and origin.moments == "carried" else {}
        if not old:
            assert not state, f"{name} starts afresh, its step too"
            counts["newborn"] += parameter.numel()
            continue
        assert isinstance(origin, Descent)
        assert state["step"] == old["step"] == 3
        assert state.keys() == old.keys()
        for key, power in MOMENTS.items():
            assert state[key].shape == parameter.shape
            assert state[key].dtype == parameter.dtype == dtype
            if origin.maps:
                want = expected(old[key], origin.maps, power)
                born = want.isnan()
                assert torch.equal(state[key][~born], want[~born])
                mean = want[~born].double().mean() if power == 2 else torch.tensor(0.0)
                torch.testing.assert_close(
                    state[key][born], mean.to(dtype).expand(int(born.sum())), rtol=1e-5, atol=0.0
                )
                assert power == 1 or (state[key][born] > 0).all()
            else:
                assert torch.equal(state[key], old[key])
                is_same = state[key].data_ptr() == old[key].data_ptr()
                assert is_same == (origin.ancestor not in seen), f"{name}: moved once, copied for every further child"
        seen.add(origin.ancestor)
        ones = expected(torch.ones_like(old["exp_avg"]), origin.maps, 1)
        counts["newborn"] += int(ones.isnan().sum())
        counts["carried"] += int((ones == 1).sum())
        counts["scaled"] += int((~ones.isnan() & (ones != 1)).sum())
    # What is computed anew (Merged, Truncated) has no use for old moments.
    descents = {name: origin.ancestor for name, origin in lineage.origins.items() if isinstance(origin, Descent)}
    trained = {descents.get(name) for name, parameter in named(new).items() if parameter.requires_grad}
    counts["dropped"] = sum(
        named(model)[name].numel() for name, state in before.items() if state and name not in trained
    )
    assert record.moments == counts


@every_case
def test_unmoved_tensors_are_not_copied_and_nothing_is_shared(case: Case) -> None:
    model, optimizer = of(case)
    lineage = described(case, model).lineage
    new, new_optimizer, _ = morph(model, case.written, optimizer)
    seen: set[str] = set()
    for name, parameter in named(new).items():
        origin = lineage.origins[name]
        if isinstance(origin, Descent) and not origin.maps:
            is_same = parameter.data_ptr() == named(model)[origin.ancestor].data_ptr()
            assert is_same == (origin.ancestor not in seen), name
            seen.add(origin.ancestor)
    held = [tensor for state in new_optimizer.state.values() for tensor in state.values() if isinstance(tensor, Tensor)]
    places = [tensor.untyped_storage().data_ptr() for tensor in [*new.parameters(), *held]]
    assert len(set(places)) == len(places), "two parameters, moments or step counts share storage"


@every_case
def test_the_optimizer_holds_exactly_what_is_trained(case: Case) -> None:
    model, optimizer = of(case)
    new, new_optimizer, _ = morph(model, case.written, optimizer)
    held = [parameter for group in new_optimizer.param_groups for parameter in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in new.parameters() if p.requires_grad]
    assert type(new_optimizer) is type(optimizer)
    options = [{key: value for key, value in group.items() if key != "params"} for group in new_optimizer.param_groups]
    assert options == [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    assert new_optimizer.defaults == optimizer.defaults
    assert set(new_optimizer.state) <= set(held)
    before = {id(parameter) for parameter in model.parameters()}
    assert not before & {id(parameter) for parameter in held}, "the new model has parameters of its own"


@every_case
def test_step_counts_go_on_separately(case: Case) -> None:
    """Each parameter's own count grows by one with each step; a shared one would grow with every parameter."""
    model, optimizer = of(case)
    new, new_optimizer, _ = morph(model, case.written, optimizer)
    start = {name: float(state.get("step", 0.0)) for name, state in states(new, new_optimizer).items()}
    train(new, new_optimizer, 2, start=10)
    for name, parameter in named(new).items():
        if parameter.requires_grad:
            assert states(new, new_optimizer)[name]["step"] == start[name] + 2, name


def test_moments_of_copies_read_off_the_weights() -> None:
    """Which unit was copied and what share it got is found from the weights alone, then held against the moments."""
    model, optimizer = with_history()
    new, new_optimizer, _ = morph(model, {"name": "widen_mlp", "value": 2.5}, optimizer)
    for layer in range(2):
        fc, proj = f"transformer.h.{layer}.mlp.c_fc.", f"transformer.h.{layer}.mlp.c_proj."
        old, wide = named(model), named(new)
        matches = (wide[fc + "weight"].T[:, None] == old[fc + "weight"].T[None]).all(-1)  # (new units, old units)
        assert (matches.sum(1) == 1).all()
        source = matches.int().argmax(1)
        assert torch.equal(source[:64], torch.arange(64))
        assert set(source.bincount().tolist()) == {2, 3}
        share = (wide[proj + "weight"] / old[proj + "weight"][source]).mean(1)
        totals = torch.zeros(64, dtype=torch.float64).index_add_(0, source, share.detach())
        torch.testing.assert_close(totals, torch.ones_like(totals), rtol=1e-12, atol=0.0)
        assert share.min() > 0.2
        assert share.max() < 0.7
        before, after = states(model, optimizer), states(new, new_optimizer)
        for key, power in MOMENTS.items():
            for part in ("weight", "bias"):
                want = before[fc + part][key][..., source] * share**power
                torch.testing.assert_close(after[fc + part][key], want, rtol=1e-11, atol=0.0)
            assert torch.equal(after[proj + "weight"][key], before[proj + "weight"][key][source])
            assert torch.equal(after[proj + "bias"][key], before[proj + "bias"][key])


def test_moments_of_stacked_layers() -> None:
    model, optimizer = with_history()
    new, new_optimizer, _ = morph(model, {"name": "stack_layers", "value": [1, 0, 1]}, optimizer)
    before, after = states(model, optimizer), states(new, new_optimizer)
    for layer, source in enumerate([1, 0, 1]):
        for part in ("attn.c_attn.weight", "mlp.c_proj.bias"):
            old, copied = before[f"transformer.h.{source}.{part}"], after[f"transformer.h.{layer}.{part}"]
            assert all(torch.equal(copied[key], old[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    identity, its_optimizer, _ = morph(model, {"name": "stack_layers", "value": 2, "init": "identity"}, optimizer)
    after = states(identity, its_optimizer)
    assert all(bool(state) == (".h.2." not in name and ".h.3." not in name) for name, state in after.items())


# The step trap


def _long_trained(model: GPT2LMHeadModel, optimizer: Optimizer) -> None:
    for state in optimizer.state.values():
        state["step"].fill_(1000.0)


def _updates(model: GPT2LMHeadModel, optimizer: Optimizer, names: Iterable[str], steps: int = 3) -> list[float]:
    """Largest movement of the named parameters at each step, in units of the learning rate."""
    seen = [{name: named(model)[name].detach().clone() for name in names}]
    for number in range(steps):
        train(model, optimizer, 1, start=20 + number)
        seen.append({name: named(model)[name].detach().clone() for name in names})
    return [
        max(float((after[name] - before[name]).abs().max()) for name in before) / RATE
        for before, after in pairwise(seen)
    ]


def _without_memory_but_old(model: GPT2LMHeadModel, names: Iterable[str]) -> Optimizer:
    """What the step trap is: moments of zero under a step count of 1000."""
    optimizer = adamw([parameter for parameter in model.parameters() if parameter.requires_grad])
    for name in names:
        parameter = named(model)[name]
        zeros = {key: torch.zeros_like(parameter) for key in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(1000.0), **zeros}
    return optimizer


@pytest.mark.parametrize(
    ("written", "frozen", "wanted"),
    [
        ({"name": "reset_optimizer_state", "value": None}, (), ""),
        ({"name": "reset_optimizer_state", "value": "mlp.1"}, (), "transformer.h.1.mlp."),
        ({"name": "unfreeze_layer", "value": "attn.0"}, ("attn.0",), "transformer.h.0.attn."),
        ({"name": "stack_layers", "value": 2, "init": "identity"}, (), "transformer.h.2."),
    ],
    ids=["reset", "reset-part", "unfreeze", "identity"],
)
def test_the_first_update_after_a_fresh_start_is_about_the_learning_rate(
    written: dict[str, object], frozen: tuple[str, ...], wanted: str
) -> None:
    def morphed() -> tuple[Morphed, list[str]]:
        model, optimizer = with_history(frozen)
        _long_trained(model, optimizer)
        made = morph(model, written, optimizer)
        return made, [name for name in named(made.model) if name.startswith(wanted)]

    made, names = morphed()
    first, second, third = _updates(made.model, made.optimizer, names)
    assert 0.9 < first <= 1.0 + 1e-9
    assert max(second, third) < 1.5
    control, names = morphed()
    trapped = _updates(control.model, _without_memory_but_old(control.model, names), names)
    assert max(trapped) > 2.0, "the control must show the trap"


def test_a_partly_newborn_tensor_takes_no_leap() -> None:
    """Its old step count is kept, so newborn second moments of zero would be the same trap."""
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(2)]

    def morphed() -> Morphed:
        model, optimizer = with_history(steps=20)
        _long_trained(model, optimizer)
        return morph(model, {"name": "widen_mlp", "value": 1.5, "split": "newborn"}, optimizer)

    def rows(made: Morphed) -> float:
        before = {name: named(made.model)[name].detach().clone() for name in names}
        train(made.model, made.optimizer, 1, start=20)
        after = {name: named(made.model)[name].detach() for name in names}
        return max(float((after[name] - before[name])[64:].abs().max()) for name in names) / RATE

    fine = rows(morphed())
    control = morphed()
    for name in names:
        control.optimizer.state[named(control.model)[name]]["exp_avg_sq"][64:] = 0.0
    assert 0.0 < fine < 1.5
    assert rows(control) > 2.0


# Copies become different


def _copies_differ(split: str) -> float:
    model, optimizer = with_history()
    new, new_optimizer, _ = morph(model, {"name": "widen_mlp", "value": 2, "split": split}, optimizer)
    weight = new.transformer.h[0].mlp.c_fc.weight
    source = (weight.T[:, None] == weight.T[None, :64]).all(-1).int().argmax(1)
    train(new, new_optimizer, 20, start=10)
    weight = weight.detach()
    return float((weight - weight[:, source]).norm() / weight.norm())


def test_copies_with_uneven_shares_become_different_and_with_even_ones_never() -> None:
    assert _copies_differ("uneven") > 1e-4
    assert _copies_differ("even") < 1e-12
