"""Trial steps on real models: they measure, and leave nothing behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from morphing_trainer.data.samples import collate
from morphing_trainer.memory.peak import peak_percent
from morphing_trainer.memory.system import GIB, Amount
from morphing_trainer.memory.trial import MOST_READ, StepProbe, longest_samples, undisturbed
from morphing_trainer.run.consensus import Consensus
from tests.conformance.common import equal, everything, with_history
from tests.support import tiny_model

CPU = torch.device("cpu")


def step(model: nn.Module, inputs: Any) -> None:
    model.train()
    model(**inputs).loss.backward()


def sample(length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(length) % 32, "labels": torch.arange(length) % 32}


def probe(model: nn.Module, **changes: Any) -> StepProbe:
    options = {"samples": 100, "longest": [sample(16)], "collate": collate, "device": CPU, "consensus": Consensus()}
    return StepProbe(model, changes.pop("step", step), **{**options, **changes})


class Norms(nn.Module):
    """Draws random numbers, and counts what it has seen in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(inputs))


def test_a_step_leaves_nothing_behind() -> None:
    model, optimizer = with_history(dtype=torch.float32)
    model.eval()
    model.transformer.h[0].train()
    model.transformer.wte.weight.grad = torch.ones_like(model.transformer.wte.weight)
    kept = model.transformer.wte.weight.grad
    before = everything(model, optimizer)
    assert probe(model)(16) is not None
    assert equal(everything(model, optimizer), before)
    assert model.transformer.wte.weight.grad is kept


def test_not_in_buffers_either_and_after_a_failure() -> None:
    model = Norms()
    model(torch.randn(4, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for fails in (False, True):
        with pytest.raises(KeyError) if fails else undisturbed(model, CPU), undisturbed(model, CPU):
            model.eval().train()
            model(torch.randn(4, 8)).sum().backward()
            if fails:
                raise KeyError("injected")
    assert equal(dict(model.state_dict()), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.rand(3), expected)
    model(torch.randn(4, 8))
    assert not equal(dict(model.state_dict()), before), "the comparison notices a batch"


def test_it_measures_real_memory() -> None:
    """Activations on a model where they dwarf everything else, on a machine of 100 GiB where others use nothing."""
    model = tiny_model(n_embd=32, n_positions=128)
    measure = partial(peak_percent, machine=lambda: Amount(0, 100 * GIB))
    tries = probe(model, longest=[sample(128)], measure=measure)
    tries(8)  # what is needed once, whatever the batch
    small, large = tries(8), tries(256)
    assert small is not None and large is not None
    # One layer's output of the MLP, forward alone: 256 * 128 * 128 numbers of 4 bytes.
    assert (large - small) / 100 * 100 * GIB > 256 * 128 * 128 * 4


def test_the_batch_is_made_of_the_longest() -> None:
    seen = []
    probe(tiny_model(), longest=[sample(16), sample(16)], step=lambda model, inputs: seen.append(inputs))(24)
    assert [tuple(inputs["input_ids"].shape) for inputs in seen] == [(24, 16), (24, 16)]


def test_the_longest_samples() -> None:
    data = [sample(3 + (index * 7) % 11) for index in range(50)]
    found = longest_samples(data)
    assert {len(each["input_ids"]) for each in found} == {13}
    assert len(found) == sum(len(each["input_ids"]) == 13 for each in data)


def test_of_many_samples_a_part_is_looked_at() -> None:
    read = []

    class Many:
        def __len__(self) -> int:
            return 10_000_000

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            read.append(index)
            return sample(4)

    longest_samples(Many())
    assert MOST_READ / 2 < len(read) <= MOST_READ
    assert max(read) > 9_900_000


def test_out_of_memory_is_no_error_and_others_are() -> None:
    def runs_out(model: nn.Module, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def fails(model: nn.Module, inputs: Any) -> None:
        raise RuntimeError("shapes do not fit")

    assert probe(tiny_model(), step=runs_out)(8) is None
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        probe(tiny_model(), step=fails)(8)
