"""`loss_chunk_size`: the same training to rounding, in less memory; refused where it cannot be the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import CausalLMOutput

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import ConfigError
from morphing_trainer.run.chunked_loss import ChunkedLoss, check_chunks
from morphing_trainer.run.journal import read_journal
from tests.support import Tokens, arguments, by_peft, losses, same, tiny_model, trainer, weights
from tests.trainer.common import DROPOUT, applied, entry
from tests.trainer.program import Job, complete

SCHEDULE = [
    entry("stack_layers", 2, when={"at_step": 3}),
    entry("widen_mlp", 2, when={"at_step": 5}),
    entry("set_attn_lora_rank", 2, when={"at_step": 7}),
]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_a_run_is_the_same_to_rounding(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = trainer(tmp_path / "a", SCHEDULE, **options)
    chunked = trainer(tmp_path / "b", SCHEDULE, loss_chunk_size=7, **options)
    whole.train()
    chunked.train()
    assert isinstance(chunked.model.loss_function, ChunkedLoss)  # also of the last model
    assert losses(chunked) != losses(whole) or options  # it is computed in another way
    torch.testing.assert_close(losses(chunked), losses(whole), rtol=1e-3 if options.get("bf16") else 1e-5, atol=0)


def compare(folder: Path, schedule: Any, **options: Any) -> MorphingTrainer:
    """A run with the option, which has been the same to rounding as one without."""
    whole, chunked = (trained(folder / str(size), schedule, loss_chunk_size=size, **options) for size in (None, 7))
    assert isinstance(chunked.model.loss_function, ChunkedLoss)
    assert applied(chunked) == applied(whole)
    torch.testing.assert_close(losses(chunked), losses(whole), rtol=1e-5, atol=0)
    return chunked


def trained(folder: Path, schedule: Any, **options: Any) -> MorphingTrainer:
    made = trainer(folder, schedule, **options)
    made.train()
    return made


def test_with_recomputed_activations(tmp_path: Path) -> None:
    """A checkpoint behind a checkpoint; with dropout, which has to be the same once more."""
    options = {"model": tiny_model(**DROPOUT), "activation_checkpointing": True}
    recomputed = compare(tmp_path, SCHEDULE, **options)
    assert recomputed.model.is_activation_checkpointing
    options["activation_checkpointing"] = False
    assert same(weights(trained(tmp_path / "kept", SCHEDULE, loss_chunk_size=7, **options)), weights(recomputed))


def test_a_guarded_operation_that_is_rolled_back(tmp_path: Path) -> None:
    """The model from before comes back as another object, which computes its loss in chunks as well."""
    guard = {"max_loss_increase": 0.0, "within_steps": 2}
    schedule = [entry("widen_mlp", 2, 2), entry("stack_layers", 2, 2, guard=guard), entry("widen_mlp", 2, 3)]
    # The better it knows its few tokens, the worse it does on all the others.
    made = compare(tmp_path, schedule, data=Tokens(vocab=4))
    undone = [e["operation"] for e in read_journal(made.run_folder / "journal.jsonl") if e["event"] == "rolled_back"]
    assert undone == ["stack_layers"]
    assert len(made.model.transformer.h) == 2
    assert len(made.model.base_model._forward_hooks) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # as the compiler is imported
@pytest.mark.parametrize(
    ("backend", "schedule"),
    [("eager", [entry("stack_layers", 2, 2)]), pytest.param("inductor", [], marks=pytest.mark.long)],
)
def test_compiled(tmp_path: Path, backend: str, schedule: list[Any]) -> None:
    options = {"max_steps": 4, "eval_strategy": "no", "model": tiny_model(n_layer=1), "torch_compile": True}
    torch._dynamo.reset()
    try:
        made = compare(tmp_path, schedule, torch_compile_backend=backend, **options)
    finally:
        torch._dynamo.reset()
    assert isinstance(made.model_wrapped, torch._dynamo.OptimizedModule)


def test_gradients_are_the_same_to_rounding() -> None:
    tokens = Tokens(4).tokens
    labels = tokens.clone()
    labels[0, 3:] = -100
    found: list[dict[str, torch.Tensor]] = []
    for chunked in (False, True):
        model = tiny_model().double()
        asked = ChunkedLoss(model, 5).ask if chunked else dict
        for items in ({}, {"num_items_in_batch": 40}):
            loss = model(input_ids=tokens, labels=labels, **items, **asked()).loss
            loss.backward()
            found.append(
                {
                    "loss": loss.detach(),
                    **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
                }
            )
    for whole, chunk in zip(found[:2], found[2:], strict=True):
        assert whole.keys() == chunk.keys()
        for name, value in whole.items():
            torch.testing.assert_close(chunk[name], value, rtol=1e-12, atol=1e-14)


def test_no_tensor_of_all_logits_is_made() -> None:
    """Seen by the allocator: the largest block of a pass is that of a chunk, not of the batch."""
    model = tiny_model(vocab_size=5000)
    tokens = Tokens(16).tokens

    def largest(**extra: Any) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(input_ids=tokens, labels=tokens, **extra).loss.backward()
        return max(
            int(event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
        )

    logits = tokens.numel() * 5000 * 4
    assert largest() >= logits
    assert largest(**ChunkedLoss(model, 16).ask()) <= logits / 2


def test_a_model_is_free_when_it_is_trained(tmp_path: Path) -> None:
    """Whoever goes on with it by hand finds nothing held back: it can be called, and copied."""
    run = trainer(tmp_path, loss_chunk_size=7, max_steps=1)
    run.train()
    run.model.train()
    assert run.model(input_ids=Tokens(2).tokens).logits.requires_grad
    assert copy.deepcopy(run.model).loss_function is not run.model.loss_function


def test_evaluations_make_all_logits(tmp_path: Path) -> None:
    run = trainer(tmp_path, loss_chunk_size=7, eval_metrics=["token_accuracy"], max_steps=2, eval_steps=2)
    run.train()
    plain = copy.deepcopy(run.model)
    plain.loss_function = plain.loss_function.ordinary
    found = MorphingTrainer(
        plain, arguments(tmp_path / "b", eval_metrics=["token_accuracy"]), eval_dataset=Tokens(20, seed=2)
    )
    expected, evaluated = found.evaluate(), run.evaluate()
    assert evaluated["eval_loss"] == expected["eval_loss"]
    assert evaluated["eval_token_accuracy"] == expected["eval_token_accuracy"]


def test_resumed_to_the_bit(tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss_chunk_size": 7, "save_strategy": "steps", "save_steps": 4, "eval_steps": 4}
    through = trainer(tmp_path / "a", SCHEDULE, **options)
    through.train()
    resumed = trainer(tmp_path / "a", SCHEDULE, **options)
    resumed.train(str(tmp_path / "a" / "checkpoint-4"))
    assert losses(resumed) == losses(through)
    assert same(weights(resumed), weights(through))


def test_a_head_with_an_adapter(tmp_path: Path) -> None:
    schedule = [entry("set_embedding_lora_rank", 2, when={"at_step": 2})]
    chunked = trainer(tmp_path / "a", schedule, loss_chunk_size=7, max_steps=6)
    whole = trainer(tmp_path / "b", schedule, max_steps=6)
    chunked.train()
    whole.train()
    torch.testing.assert_close(losses(chunked), losses(whole), rtol=1e-5, atol=0)


def test_a_model_of_two_runs_is_hooked_once(tmp_path: Path) -> None:
    model = tiny_model()
    for name in "ab":
        args = arguments(tmp_path / name, max_steps=1, loss_chunk_size=7, eval_strategy="no")
        MorphingTrainer(model, args, train_dataset=Tokens()).train()
    assert len(model.base_model._forward_hooks) == 1
    assert not isinstance(model.loss_function.ordinary, ChunkedLoss)


class Changed(GPT2LMHeadModel):
    """As some families do: logits are changed behind the head."""

    change: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, *args: Any, logits_to_keep: int | torch.Tensor = 0, **options: Any) -> Any:
        found = super().forward(*args, logits_to_keep=logits_to_keep, **options)
        found.logits = type(self).change(found.logits)
        return found


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> type[GPT2LMHeadModel]:
    return type("Changed", (Changed,), {"change": staticmethod(change)})


class Scaled(GPT2LMHeadModel):
    """Changes its hidden states before the head."""

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **options: Any) -> Any:
        return CausalLMOutput(logits=self.lm_head(2 * self.transformer(input_ids).last_hidden_state))


class Headless(GPT2LMHeadModel):
    """Takes the weight of its head, which another module could have changed on the way."""

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int = 0, **options: Any) -> Any:
        return CausalLMOutput(logits=self.transformer(input_ids).last_hidden_state @ self.lm_head.weight.T)


class Old(GPT2LMHeadModel):
    """Knows nothing of logits to keep."""

    def forward(self, input_ids: torch.Tensor, labels: Any = None) -> Any:
        return super().forward(input_ids=input_ids, labels=labels)


def check(folder: Path, model: GPT2LMHeadModel) -> None:
    check_chunks(trainer(folder, loss_chunk_size=7), model)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(changed(lambda logits: 30 * torch.tanh(logits / 30)), id="soft cap"),
        pytest.param(changed(lambda logits: logits.clamp(min=-100)), id="clamp"),
        pytest.param(changed(lambda logits: 1.001 * logits), id="scale"),
        pytest.param(changed(lambda logits: logits + 1e-2), id="offset"),
        pytest.param(changed(lambda logits: logits.index_fill(-1, torch.tensor(3), -torch.inf)), id="no such token"),
        pytest.param(Scaled, id="before the head"),
        pytest.param(Headless, id="without the head"),
    ],
)
def test_models_that_do_more_than_their_head_are_refused(tmp_path: Path, kind: type[GPT2LMHeadModel]) -> None:
    said = f"loss_chunk_size: {kind.__name__} does more to its hidden states than its head"
    with pytest.raises(ConfigError, match=said):
        check(tmp_path, kind(tiny_model().config))


def test_a_change_while_training_is_seen(tmp_path: Path) -> None:
    model = tiny_model()
    model.lm_head = torch.nn.Sequential(model.lm_head, torch.nn.Dropout(0.5))
    model.get_output_embeddings = lambda: model.lm_head[0]
    with pytest.raises(ConfigError, match="more to its hidden states"):
        check(tmp_path, model.eval())


def test_an_old_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loss_chunk_size: the forward pass of Old takes no logits_to_keep"):
        check(tmp_path, Old(tiny_model().config))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_model_of_any_type_is_accepted(tmp_path: Path, dtype: torch.dtype) -> None:
    check(tmp_path, tiny_model().to(dtype))


def test_a_model_with_adapters_is_accepted(tmp_path: Path) -> None:
    peft = by_peft(tiny_model(), target_modules=["c_attn", "lm_head"], lora_dropout=0.5)
    check(tmp_path, peft.get_base_model())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_recomputes_already_is_accepted(tmp_path: Path, reentrant: bool) -> None:
    """Without a warning, though the check makes no backward pass."""
    model = tiny_model()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    check(tmp_path, model)
    assert all(parameter.grad is None for parameter in model.parameters())


class Counting(GPT2LMHeadModel):
    """Counts its passes, and may fail in one."""

    fails = False

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, *args: Any, logits_to_keep: int | torch.Tensor = 0, **options: Any) -> Any:
        self.passes += 1
        found = super().forward(*args, logits_to_keep=logits_to_keep, **options)
        if self.fails:
            raise RuntimeError("failed on the way")
        return found


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_checked_stays_as_it_was(tmp_path: Path, fails: bool) -> None:
    run, model = trainer(tmp_path, loss_chunk_size=7), Counting(tiny_model(**DROPOUT).config)
    model.fails = fails
    model.train().transformer.h[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    with pytest.raises(RuntimeError, match="failed on the way") if fails else nullcontext():
        check_chunks(run, model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert same(dict(model.state_dict()), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss_chunk_size": 0}, "must be at least 1 token, is 0"),
        ({"label_smoothing_factor": 0.1}, "smoothed labels need all logits"),
    ],
    ids=["zero", "smoothed"],
)
def test_arguments_that_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"loss_chunk_size: {said}"):
        arguments(tmp_path, **{"loss_chunk_size": 7, **changes})


def test_an_own_loss_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, loss_chunk_size=7, eval_strategy="no")
    with pytest.raises(ConfigError, match="loss_chunk_size: compute_loss_func needs all logits"):
        MorphingTrainer(tiny_model(), args, train_dataset=Tokens(), compute_loss_func=lambda *a, **k: None)


def test_two_processes(tmp_path: Path) -> None:
    schedule = [entry("stack_layers", 2, when={"at_step": 2}), entry("set_embedding_lora_rank", 2, when={"at_step": 3})]
    options = {"max_steps": 5, "per_device_train_batch_size": 2}
    jobs = [Job(tmp_path / str(chunk), schedule, options={**options, "loss_chunk_size": chunk}) for chunk in (None, 7)]
    whole, chunked = (complete(job, processes=2) for job in jobs)
    assert chunked.losses(0) == chunked.losses(1) == pytest.approx(whole.losses(), rel=1e-5)


def test_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="loss_chunk_size: not supported under FSDP2; leave it out, or use DDP"):
        complete(Job(tmp_path, [], sharded=True, options={"max_steps": 1, "loss_chunk_size": 7}), processes=2)
