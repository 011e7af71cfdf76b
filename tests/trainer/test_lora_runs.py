"""Runs with LoRA: adapters from the start, adapters that come and go, and what the run tells of them."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, TrainerCallback

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.checkpoint.store import checkpoints
from morphing_trainer.errors import ConfigError, ModelError, NotFiniteError, ScheduleError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.journal import read_journal
from tests.support import by_peft, losses, same, stirred, tiny_model, trainer, weights
from tests.trainer.common import applied, entry, optimizer_state

QUICK = {"eval_strategy": "no", "max_steps": 6}
C_ATTN = "transformer.h.{}.attn.c_attn"


def adapted(seed: int = 0, shape: Any = None, **arguments: Any) -> GPT2LMHeadModel:
    made = add_adapters(tiny_model(**(shape or {})), LoraArguments(**arguments), seed)
    assert isinstance(made, GPT2LMHeadModel)
    return made


def records(run: MorphingTrainer) -> list[dict[str, Any]]:
    """Records of the operations, as the journal has them."""
    events = read_journal(run.run_folder / "journal.jsonl")
    return [event["record"] for event in events if event["event"] == "operation"]


def dropped(note: str) -> float:
    """The share of the norm that a note says was lost."""
    return float(note.partition("% of the adapters' norm")[0].rpartition(" ")[2])


def test_adapters_from_the_start(tmp_path: Path) -> None:
    """What is under an adapter stays, the rest trains, and the loss falls."""
    model = adapted(attn_lora_rank_divisor=4, vocab_lora_rank_divisor=4)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = trainer(tmp_path, model=model, max_steps=12)
    run.train()
    after = weights(run)
    hosts = ModelSpec.of(model).hosts
    assert len(hosts) == 5
    assert {name for name in after if torch.equal(after[name], before[name])} == hosts
    assert losses(run)[-1] < losses(run)[0] - 0.2
    assert run.model.lm_head.base_layer.weight is run.model.transformer.wte.base_layer.weight


def test_only_adapters_are_trained_when_all_is_frozen(tmp_path: Path) -> None:
    model = adapted(lora_r=4, lora_target_modules=["all-linear"], lora_freeze_base="all")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run = trainer(tmp_path, [entry("merge_lora_weights", None, 3)], model, **QUICK)
    run.train()
    after = weights(run)
    base = {name for name in before if ".lora_" not in name}
    changed = {name for name in base if not torch.equal(after[name], before[name])}
    assert changed == ModelSpec.of(model).hosts, "the merge changed these, the optimizer nothing"
    assert run.session is not None
    assert run.session.state.spec.trainable == sum(after[name].numel() for name in after if ".lora_" in name)


def test_adapters_come_and_go(tmp_path: Path) -> None:
    """A plain model ends as a plain model; between, its weights under adapters stood still."""
    hosts: list[torch.Tensor] = []

    class Watches(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            modules = dict(model.named_modules())
            module = modules[C_ATTN.format(1)]
            hosts.append(getattr(module, "base_layer", module).weight.detach().clone())

    schedule = [entry("set_attn_lora_rank", 4, 2), entry("set_attn_lora_rank", 0, 3)]
    run = trainer(tmp_path, schedule, tiny_model(), callbacks=[Watches()], **QUICK | {"max_steps": 8})
    run.train()
    moved = [not torch.equal(old, new) for old, new in pairwise(hosts)]
    # Between steps 2 and 5 it is under an adapter; the merge after step 5 is seen after step 6.
    assert moved == [True, False, False, False, True, True, True]
    assert weights(run).keys() == dict(tiny_model().named_parameters()).keys()
    assert not any(name.endswith("base_layer") for name, _ in run.model.named_modules())
    assert all(p.requires_grad for p in run.model.parameters())
    coming, going = records(run)
    assert [coming[at]["lora_modules"] for at in ("before", "after")] == [0, 4]
    assert [going[at]["lora_rank"] for at in ("before", "after")] == [4, 0]
    assert coming["preserving"] is going["preserving"] is True
    assert coming["multipliers"]["attn_lora_rank_divisor"] == 4.0
    assert going["multipliers"]["attn_lora_rank_divisor"] == 0.0


def test_multipliers_in_records_and_state(tmp_path: Path) -> None:
    model = adapted(attn_lora_rank_divisor=3, vocab_lora_rank_divisor=8, lora_alpha=6)
    schedule = [
        entry("change_lora_alpha", 2, 1),
        entry("decrease_attn_lora_scaling", 1.5, 1),
        entry("decrease_vocab_lora_scaling", 0.5, 1),
        entry("set_attn_lora_rank", 4, 1),
        entry("change_lora_alpha", 0.5, 1, compensate=True),
    ]
    run = trainer(tmp_path, schedule, model, save_strategy="steps", save_steps=6, **QUICK)
    run.train()
    names = ("lora_alpha_multiplier", "attn_lora_rank_divisor", "vocab_lora_rank_divisor")
    found = [tuple(record["multipliers"][name] for name in names) for record in records(run)]
    # 16 // 3 is rank 5; 3 / 1.5 = 2; 8 / 0.5 = 16; and then rank 4 of 16.
    assert found == [(2, 3, 8), (2, 2, 8), (2, 2, 16), (2, 4, 16), (1, 4, 16)]
    assert [record["after"]["lora_rank"] for record in records(run)] == [5, 8, 8, 4, 4]
    (saved,) = checkpoints(tmp_path)
    state = run.find_bundle(str(saved), Consensus()).state  # type: ignore[union-attr]
    assert {name: state["multipliers"][name] for name in names} == dict(zip(names, (1, 4, 16), strict=True))
    assert run.plan[-1].lora_rank == 4
    assert [phase.lora_rank for phase in run.plan] == [5, 5, 8, 8, 4, 4]


def test_nothing_to_merge_is_a_warning(tmp_path: Path) -> None:
    """In the journal and in the run log; the run goes on as without it."""
    schedule = [entry("merge_lora_weights", None, 2), entry("change_lora_alpha", 2, 1)]
    run = trainer(tmp_path / "run", schedule, tiny_model(), **QUICK)
    run.train()
    plain = trainer(tmp_path / "plain", None, tiny_model(), **QUICK)
    plain.train()
    assert same(weights(run), weights(plain))
    assert same(optimizer_state(run), optimizer_state(plain))
    warnings = [record["warning"] for record in records(run)]
    assert warnings[0] == "there is nothing to merge, the model has no adapters"
    assert warnings[1].startswith("the model has no adapters")
    log = (tmp_path / "run" / "logs" / "train.log").read_text().splitlines()
    warned = [line.partition(" WARNING ")[2] for line in log if " WARNING " in line]
    assert warned[0] == "step 2: merge_lora_weights: there is nothing to merge, the model has no adapters"
    assert warned[1].startswith("step 3: change_lora_alpha: the model has no adapters")
    assert len(warned) == 2


def test_what_is_dropped_is_reported(tmp_path: Path) -> None:
    model = adapted(lora_r=8)
    schedule = [entry("set_attn_lora_rank", 2, 4, residual="drop"), entry("set_attn_lora_rank", 1, 1)]
    run = trainer(tmp_path, schedule, model, **QUICK)
    run.train()
    dropping, merging = records(run)
    assert dropping["preserving"] is False
    assert 1 < dropped(dropping["note"]) < 99
    assert merging["preserving"] is True
    assert "dropped" not in merging["note"]


def test_a_model_that_peft_has_wrapped(tmp_path: Path) -> None:
    """The model inside is what trains, as an unwrapped one would."""
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn"], "lora_dropout": 0.1}
    torch.manual_seed(3)
    wrapped = stirred(by_peft(tiny_model(), **options))
    schedule = [entry("set_attn_lora_rank", 6, 2), entry("stack_layers", 2, 1), entry("merge_lora_weights", None, 1)]
    run = trainer(tmp_path / "run", schedule, copy.deepcopy(wrapped), **QUICK)
    assert type(run.model) is GPT2LMHeadModel
    run.train()
    bare = trainer(tmp_path / "bare", schedule, copy.deepcopy(wrapped).get_base_model(), **QUICK)
    bare.train()
    assert same(weights(run), weights(bare))
    assert losses(run) == losses(bare)
    assert [name for name, _ in applied(run)] == [line["name"] for line in schedule]
    # PEFT had frozen the whole base: the adapters alone are trained, and so is what comes of them.
    assert {n for n, p in run.model.named_parameters() if p.requires_grad} == {n for n in weights(run) if ".lora_" in n}
    assert run.model.peft_config["default"].r == 6


def test_peft_models_that_cannot_be_morphed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sets use_dora, which a rank change or merge would not keep"):
        trainer(tmp_path, model=by_peft(tiny_model(), r=2, target_modules=["c_attn"], use_dora=True))
    with pytest.raises(ModelError, match=r"transformer\.wte and lm_head share their weight, but not their adapter"):
        trainer(tmp_path, model=by_peft(tiny_model(), r=2, target_modules=["wte"]))
    merged = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    merged.merge_adapter()
    with pytest.raises(ModelError, match=r"is merged for inference; call unmerge_adapter\(\) first"):
        trainer(tmp_path, model=merged)
    two = by_peft(tiny_model(), r=2, target_modules=["c_attn"])
    two.add_adapter("second", copy.deepcopy(two.peft_config["default"]))
    with pytest.raises(ModelError, match="has adapters named default, second; one set of adapters can be morphed"):
        trainer(tmp_path, model=two)


def test_operations_that_do_not_fit_are_found_before_the_first_step(tmp_path: Path) -> None:
    schedule = [
        entry("decrease_attn_lora_scaling", 2, 1),
        entry("set_embedding_lora_rank", 17, 1),
        entry("set_layer_lora_rank", ["attn.7", 2], 1),
    ]
    with pytest.raises(ScheduleError) as caught:
        trainer(tmp_path, schedule)
    lines = str(caught.value).splitlines()
    assert ["no adapter on its attention" in lines[0], "rank 17 is above 16" in lines[1], "'attn.7'" in lines[2]] == [
        True,
        True,
        True,
    ]
    assert not list(tmp_path.iterdir())


def test_param_groups_of_adapters(tmp_path: Path) -> None:
    """From the start and made on the way, adapters decay alike: as the weights that they adapt."""
    schedule = [entry("set_attn_lora_rank", 4, 2), entry("change_lr", 0.5, 1), entry("set_embedding_lora_rank", 2, 1)]
    run = trainer(tmp_path / "run", schedule, tiny_model(), weight_decay=0.1, lr_scheduler_type="constant", **QUICK)
    run.train()
    fresh = trainer(tmp_path / "fresh", None, run.model, weight_decay=0.1, **QUICK)
    fresh.create_optimizer()
    for made in (run, fresh):
        optimizer = getattr(made.optimizer, "optimizer", made.optimizer)
        names = {id(parameter): name for name, parameter in made.model.named_parameters()}
        groups = [
            (group["weight_decay"], {names[id(parameter)] for parameter in group["params"]})
            for group in optimizer.param_groups
        ]
        assert [decay for decay, _ in groups] == [0.1, 0.0]
        if made is run:
            expected = groups
            assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 5e-3]
    assert groups == expected
    assert sum(".lora_" in name for name in groups[0][1]) == 2 * 4, "of the attention, not of the embedding"


class Poisons(TrainerCallback):
    """Puts a value into an adapter after a step."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.get_submodule(C_ATTN.format(0)).lora_A["default"].weight[0, 0] = self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_dead_adapter_is_a_dead_model(tmp_path: Path, value: float, caplog: pytest.LogCaptureFixture) -> None:
    options = {**QUICK, "save_strategy": "steps", "save_steps": 1}
    run = trainer(tmp_path, None, adapted(lora_r=2), callbacks=[Poisons(4, value)], **options)
    with pytest.raises(NotFiniteError, match="step 5: the loss"):
        run.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    assert "c_attn.lora_A.default.weight first)" in caplog.text
    with pytest.raises(ModelError, match="the trained model is dead"):
        run.save_whole(tmp_path / "model")
    assert not list(tmp_path.glob("*model*"))


def test_arguments_are_checked_before_the_model_is_touched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        trainer(tmp_path, model=adapted(lora_r=99))


def test_a_model_of_which_nothing_is_trained_is_refused(tmp_path: Path) -> None:
    """As `PeftModel.from_pretrained` gives it."""
    model = tiny_model().requires_grad_(False)
    with pytest.raises(ConfigError, match=r"nothing of it is trained.*is_trainable=True"):
        trainer(tmp_path, model=model)
