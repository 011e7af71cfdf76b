"""Which parameters decay, through everything that a run does to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.run.bundle import read_bundle
from tests.support import same, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, optimizer_state
from tests.trainer.program import Job, complete

STILL = ("bias", "ln_", "wte", "wpe")
DECAY = {"weight_decay": 0.3, "eval_strategy": "no"}


def groups(run: MorphingTrainer) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay and of those that do not, as the optimizer has them."""
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    decaying, still = optimizer.param_groups
    assert (decaying["weight_decay"], still["weight_decay"]) == (0.3, 0.0)
    first, second = ({names[id(parameter)] for parameter in group["params"]} for group in (decaying, still))
    return first, second


def expected(run: MorphingTrainer) -> tuple[set[str], set[str]]:
    trained = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    still = {name for name in trained if any(part in name for part in STILL)}
    return trained - still, still


MORPHS = [
    entry("stack_layers", 2, 2),
    entry("widen_mlp", 2, 1),
    entry("freeze_layer", ["wte", "attn.0", "ln_f"], 1),
    entry("set_attn_lora_rank", 2, 1),
    entry("unfreeze_layer", "*", 1),
    entry("set_embedding_lora_rank", 2, 1),
    entry("merge_lora_weights", None, 1, restart=False),
]


def test_through_morphs_and_freezing(tmp_path: Path) -> None:
    for count in range(len(MORPHS) + 1):
        run = trainer(tmp_path / str(count), MORPHS[:count], max_steps=count + 3, **DECAY)
        run.train()
        assert len(applied(run)) == count
        assert groups(run) == expected(run), MORPHS[:count]


def test_what_is_frozen_from_the_start_thaws_into_its_own_group(tmp_path: Path) -> None:
    """Whatever its likes are: an embedding has as many dimensions as the weights that decay."""
    options = {"default_freeze": True, "train_only": ["attn.*", "ln_f"], **DECAY}
    run = trainer(tmp_path, [entry("unfreeze_layer", "*", 2)], max_steps=4, **options)
    run.train()
    assert groups(run) == expected(run)
    assert "transformer.wte.weight" in groups(run)[1]
    assert "transformer.h.0.mlp.c_fc.weight" in groups(run)[0]


def test_embeddings_do_not_shrink_and_matrices_do(tmp_path: Path) -> None:
    """At a rate of 0 nothing moves; without gradients, only what decays does."""
    model = tiny_model()
    options = {**DECAY, "lr_scheduler_type": "constant", "max_steps": 2, "learning_rate": 1e-2}

    class Silent(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            for parameter in model.parameters():
                parameter.grad.zero_()

    run = trainer(tmp_path, [], model, callbacks=[Silent()], **options)
    run.train()
    before = dict(model.named_parameters())
    for name, after in weights(run).items():
        shrunk = 1.0 if any(part in name for part in STILL) else (1 - 1e-2 * 0.3) ** 2
        torch.testing.assert_close(after, before[name].detach() * shrunk, rtol=1e-6, atol=1e-8)


MARKED = "transformer.h.1.mlp.c_fc.weight"


def with_mark(**changes: Any) -> Any:
    model = tiny_model(**changes)
    model.get_parameter(MARKED).skip_weight_decay = True  # type: ignore[attr-defined]
    return model


def test_a_mark_goes_along_and_through_a_resume(tmp_path: Path) -> None:
    schedule = [entry("stack_layers", 2, 2), entry("widen_mlp", 1.5, 2), entry("set_layer_lora_rank", ["mlp.3", 2], 2)]

    def begun(folder: str) -> MorphingTrainer:
        made = trainer(tmp_path / folder, schedule, max_steps=8, save_strategy="steps", save_steps=1, **DECAY,
                       save_total_limit=20)  # fmt: skip
        for name, parameter in made.model.named_parameters():
            if name == MARKED:
                parameter.skip_weight_decay = True  # type: ignore[attr-defined]
        return made

    whole = begun("whole")
    whole.train()
    decaying, still = groups(whole)
    copies = {name for name in still if "mlp.c_fc" in name and "bias" not in name}
    assert copies == {
        MARKED,
        "transformer.h.3.mlp.c_fc.lora_A.default.weight",
        "transformer.h.3.mlp.c_fc.lora_B.default.weight",
    }
    assert "transformer.h.3.mlp.c_proj.lora_A.default.weight" in decaying
    marks = {name for name, each in whole.model.named_parameters() if getattr(each, "skip_weight_decay", False)}
    assert copies <= marks, "the attribute itself goes along too"
    for step in (1, 5):
        resumed = begun(f"{step}")
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert groups(resumed) == groups(whole), step
        assert same(weights(resumed), weights(whole)), step
        assert same(optimizer_state(resumed), optimizer_state(whole)), step


def test_adapters_from_the_start(tmp_path: Path) -> None:
    model = add_adapters(tiny_model(), LoraArguments(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=8))
    run = trainer(tmp_path, [entry("set_embedding_lora_rank", 4, 2)], model, max_steps=4, **DECAY)  # type: ignore[arg-type]
    run.train()
    assert groups(run) == expected(run)
    lora = {name for group in groups(run) for name in group if ".lora_" in name}
    assert {name for name in lora if "wte" in name} == lora & groups(run)[1] != set()


def test_compiled(tmp_path: Path) -> None:
    compiling = {"torch_compile": True, "torch_compile_backend": "eager"}
    run = trainer(tmp_path, [entry("widen_mlp", 2, 1)], tiny_model(n_layer=1), max_steps=3, **DECAY, **compiling)
    run.train()
    assert groups(run) == expected(run)
    torch._dynamo.reset()


def test_two_processes_decay_as_one(tmp_path: Path) -> None:
    options = {**DECAY, "max_steps": 5, "save_strategy": "steps", "save_steps": 5}
    jobs = [
        Job(tmp_path / str(n), MORPHS[:3], options={**options, "per_device_train_batch_size": 4 // n}) for n in (1, 2)
    ]
    one, two = (complete(job, number) for number, job in enumerate(jobs, 1))
    saved = [read_bundle(job.folder / "checkpoint-5") for job in (one, two)]
    assert saved[0].optimizer_names == saved[1].optimizer_names
    assert not [name for name in saved[1].optimizer_names[0] if any(part in name for part in STILL)]
    assert saved[1].state["groups"]["transformer.wte.weight"] == 1, "frozen now"
    for name, weight in one.weights().items():
        torch.testing.assert_close(two.weights()[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "adam", "adagrad", "sgd", "rmsprop"])
def test_optimizers_by_short_name(kind: str, tmp_path: Path) -> None:
    """They learn through morphs, and go on from a checkpoint bit by bit."""
    schedule = [entry("widen_mlp", 2, 3), entry("stack_layers", 2, 2), entry("freeze_layer", "wpe", 1)]
    options = {"optimizer": kind, "max_steps": 9, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20}
    whole = trainer(tmp_path / "whole", schedule, **options)
    whole.train()
    assert type(whole.optimizer.optimizer).__name__.lower() == {"adamw": "adamw"}.get(kind, kind)
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    for step in (3, 7):
        resumed = trainer(tmp_path / str(step), schedule, **options)
        resumed.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(resumed), weights(whole)), step
        assert same(optimizer_state(resumed), optimizer_state(whole)), step
