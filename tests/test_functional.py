"""`morph` in anybody's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.optim import AdamW
from transformers import GPT2LMHeadModel

import morphing_trainer
from morphing_trainer import Morphed, morph
from morphing_trainer.errors import ModelError, MorphError, OperationError
from morphing_trainer.operations.depth import StackLayers
from morphing_trainer.operations.width import WidenMlp
from tests.conformance.cases import ARCHITECTURE, Case
from tests.conformance.common import logits, named, of, states, train
from tests.support import by_peft, same, tiny_model

STACK = {"name": "stack_layers", "value": 2}


@pytest.mark.parametrize("case", ARCHITECTURE, ids=lambda case: case.id)
def test_in_a_bare_loop(case: Case) -> None:
    model, optimizer = of(case, dtype=torch.float32)
    first = train(model, optimizer, 1)
    model, optimizer, _ = morph(model, dict(case.written), optimizer=optimizer, seed=0)
    for _ in range(12):
        last = train(model, optimizer, 1)
    assert last < first


def test_the_tuple_and_its_record() -> None:
    model = tiny_model()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    made = morph(model, STACK, optimizer)
    assert isinstance(made, Morphed)
    assert made._fields == ("model", "optimizer", "record")
    assert made == (made.model, made.optimizer, made.record)
    assert isinstance(made.model, GPT2LMHeadModel)
    assert isinstance(made.optimizer, AdamW)
    record = made.record
    assert (record.operation, record.value, record.preserving, record.note) == ("stack_layers", 2.0, False, "")
    assert (record.index, record.step, record.tokens, record.trigger) == (0, 0, 0, "called")
    shape = {"hidden": 16, "mlp": 64, "lora_rank": 0, "lora_modules": 0}
    assert record.before == {**shape, "layers": 2, "parameters": 7360, "trainable": 7360}
    assert record.after == {**shape, "layers": 4, "parameters": 13920, "trainable": 13920}
    assert record.moments == {"carried": 13920, "scaled": 0, "newborn": 0, "dropped": 0}
    assert 0 < record.seconds < 60
    frozen = morph(model, {"name": "freeze_layer", "value": "wte"}, optimizer).record
    assert frozen.moments == {"carried": 7360 - 512, "scaled": 0, "newborn": 0, "dropped": 512}
    assert frozen.after["trainable"] == 7360 - 512
    assert morphing_trainer.morph is morph


def test_a_mapping_and_an_operation_are_the_same() -> None:
    model = tiny_model()
    for written, operation in [
        ({"name": "increase_hidden_dim", "value": 2, "split": "newborn"}, WidenMlp(value=2, split="newborn")),
        (
            {"name": "stack_layers", "value": [0, 0, 1], "init": "identity"},
            StackLayers(value=[0, 0, 1], init="identity"),
        ),
    ]:
        one, other = morph(model, written, seed=3), morph(model, operation, seed=3)
        assert same(named(one.model), named(other.model))
        assert one.record.operation == other.record.operation == operation.name


def test_without_an_optimizer() -> None:
    model = tiny_model()
    made = morph(model, {"name": "widen_mlp", "value": 2})
    assert made.optimizer is None
    assert set(made.record.moments.values()) == {0}
    torch.testing.assert_close(logits(made.model), logits(model), rtol=1e-4, atol=1e-6)


def test_an_optimizer_that_has_not_stepped_yet() -> None:
    model = tiny_model()
    new, optimizer, record = morph(model, {"name": "widen_mlp", "value": 2}, AdamW(model.parameters(), lr=1e-3))
    assert not optimizer.state
    assert record.moments["newborn"] == record.after["parameters"]
    train(new, optimizer, 1)


@pytest.mark.parametrize(
    ("written", "match"),
    [
        ({"name": "change_lr", "value": 2}, "^change_lr: changes settings of a training run.*set them yourself"),
        ({"name": "stack_layer", "value": 2}, "^operation.*did you mean 'stack_layers'"),
        ({"name": "stack_layers", "value": 0.5}, "above 1"),
        ({"value": 2}, "no 'name'"),
        ({"name": "widen_mlp", "value": 2, "splitt": "even"}, "did you mean 'split'"),
    ],
)
def test_bad_operations(written: dict[str, Any], match: str) -> None:
    with pytest.raises(OperationError, match=match) as caught:
        morph(tiny_model(), written)
    assert isinstance(caught.value, ValueError)
    assert "schedule:" not in str(caught.value)
    assert "entry" not in str(caught.value)
    assert "max_wait_iters" not in str(caught.value)


def test_repeating_belongs_in_a_schedule() -> None:
    operation = {"name": "stack_layers", "value": 2}
    for repeated in ({**operation, "repeat": "end"}, {"repeat": 2, "operations": [operation]}):
        with pytest.raises(OperationError, match="repeat belongs in a schedule"):
            morph(tiny_model(), repeated)


def test_an_optimizer_of_another_model_is_refused() -> None:
    """Its memory would be lost without a word."""
    model, other = tiny_model(), tiny_model(1)
    optimizer = AdamW(other.parameters(), lr=1e-3)
    train(other, optimizer, 1)
    with pytest.raises(OperationError, match="28 of its 28 tensors are not parameters of the model"):
        morph(model, STACK, optimizer)
    extra = AdamW([*model.parameters(), torch.nn.Parameter(torch.zeros(3))], lr=1e-3)
    with pytest.raises(OperationError, match="1 of its 29 tensors are not parameters of the model"):
        morph(model, STACK, extra)


def test_an_optimizer_over_a_part_of_what_takes_gradients_is_refused() -> None:
    model = tiny_model()
    optimizer = AdamW(model.transformer.h.parameters(), lr=1e-3)
    with pytest.raises(
        OperationError, match=r"does not hold transformer.wte.weight and 3 more.*requires_grad_\(False\)"
    ):
        morph(model, STACK, optimizer)
    for part in (model.transformer.wte, model.transformer.wpe, model.transformer.ln_f):
        part.requires_grad_(False)
    new, new_optimizer, _ = morph(model, STACK, optimizer)
    assert len(new_optimizer.param_groups[0]["params"]) == 48
    train(new, new_optimizer, 1)


def test_optimizers_that_cannot_be_followed_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(OperationError, match="LBFGS keeps one memory"):
        morph(model, STACK, torch.optim.LBFGS(model.parameters()))
    wrapped = Accelerator(cpu=True).prepare(AdamW(model.parameters(), lr=1e-3))
    with pytest.raises(OperationError, match=r"AcceleratedOptimizer wraps another; pass its .optimizer"):
        morph(model, STACK, wrapped)
    new, optimizer, _ = morph(model, STACK, wrapped.optimizer)
    train(new, optimizer, 1)


def test_wrapped_models_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="DataParallel cannot be morphed"):
        morph(torch.nn.DataParallel(tiny_model()), STACK)
    assert issubclass(ModelError, MorphError)


def test_thawed_parameters_forget_what_an_optimizer_kept_of_them() -> None:
    """In one's own loop a frozen parameter can stay in the optimizer, with moments from long ago."""
    model = tiny_model()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer, 2)
    model.transformer.wpe.requires_grad_(False)
    train(model, optimizer, 2, start=2)
    assert optimizer.state[model.transformer.wpe.weight]
    new, new_optimizer, record = morph(model, {"name": "unfreeze_layer", "value": ["wpe", "h.0"]}, optimizer)
    assert not new_optimizer.state.get(new.transformer.wpe.weight)
    assert record.moments["newborn"] == new.transformer.wpe.weight.numel()
    assert states(new, new_optimizer)["transformer.h.0.ln_1.bias"]["step"] == 4
    train(new, new_optimizer, 1)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        ("widen_mlp", "must be a mapping"),
        ({"name": "widen_mlp", "value": 2, "trigger_loss": 3}, "trigger_loss belongs"),
    ],
)
def test_what_is_no_operation(operation: Any, said: str) -> None:
    with pytest.raises(OperationError, match=said):
        morph(tiny_model(), operation)


def test_a_model_that_peft_has_wrapped() -> None:
    wrapped = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    optimizer = AdamW([parameter for parameter in wrapped.parameters() if parameter.requires_grad])
    new, its_optimizer, record = morph(wrapped, {"name": "set_attn_lora_rank", "value": 3}, optimizer)
    assert its_optimizer is not None
    assert type(new) is GPT2LMHeadModel
    assert (record.before["lora_rank"], record.after["lora_rank"]) == (2, 3)
    train(new, its_optimizer, 1)


@pytest.mark.parametrize("first", ["frozen", "adapted"])
def test_a_frozen_embedding_stays_frozen_through_an_adapter(first: str) -> None:
    freeze = {"name": "freeze_layer", "value": "wte"}
    adapt = {"name": "set_embedding_lora_rank", "value": 2}
    model = tiny_model()
    for written in (freeze, adapt) if first == "frozen" else (adapt, freeze):
        model = morph(model, written).model
    model = morph(model, {"name": "merge_lora_weights", "value": None, "restart": False}).model
    assert not model.transformer.wte.weight.requires_grad
    assert model.transformer.wpe.weight.requires_grad
