"""The table of cases: every operation of the registry, every option and alias. Without a case, collection fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from morphing_trainer.operations import OPERATIONS, ArchitectureOperation, Operation
from morphing_trainer.settings import Settings


@dataclass(frozen=True)
class Case:
    """An architecture operation on the model of two layers and 64 MLP units.

    Attributes:
        written: as it stands in a schedule, trigger aside.
        preserving: the function stays.
        sources: old layer behind each new one.
        frozen: components that are frozen before.
        lora: adapters that the model has before, a key of `ADAPTERS`; "" for none.
        random: another seed gives another model.
        inert: training goes on as if nothing had happened.
    """

    id: str
    written: Mapping[str, Any]
    preserving: bool = True
    sources: tuple[int, ...] = (0, 1)
    frozen: tuple[str, ...] = ()
    random: bool = False
    inert: bool = False
    lora: str = ""

    @property
    def name(self) -> str:
        return str(self.written["name"])


def _stack(id: str, value: Any, *sources: int, frozen: tuple[str, ...] = (), lora: str = "", **options: str) -> Case:
    written = {"name": "stack_layers", "value": value, **options}
    return Case(id, written, options.get("init") == "identity", sources, frozen, lora=lora)


def _wide(
    id: str, value: float, name: str = "widen_mlp", frozen: tuple[str, ...] = (), lora: str = "", **options: Any
) -> Case:
    written = {"name": name, "value": value, **options}
    return Case(id, written, not options.get("noise"), frozen=frozen, random=True, lora=lora)


def _same(id: str, name: str, value: Any, *frozen: str, inert: bool = False, lora: str = "") -> Case:
    return Case(id, {"name": name, "value": value}, frozen=frozen, inert=inert, lora=lora)


def _lora(
    id: str,
    name: str,
    value: Any,
    *frozen: str,
    on: str = "lora",
    preserving: bool = True,
    random: bool = False,
    inert: bool = False,
    **options: Any,
) -> Case:
    return Case(id, {"name": name, "value": value, **options}, preserving, (0, 1), frozen, random, inert, on)


_MIXED = {
    "transformer.h.0.attn.c_attn": (4, 8),
    "transformer.h.0.attn.c_proj": (2, 3),
    "transformer.h.1.attn.c_attn": (3, 8),
    "transformer.h.1.attn.c_proj": (6, 3),
    "transformer.h.0.mlp.c_fc": (5, 10),
    "transformer.h.1.mlp.c_fc": (2, 7),
    "transformer.h.1.mlp.c_proj": (4, 2.5),
    "transformer.wte": (3, 6),
    "lm_head": (2, 5),
}
ADAPTERS: dict[str, tuple[bool, dict[str, tuple[int, float]]]] = {
    "": (False, {}),
    "lora": (False, _MIXED),
    "rslora": (True, _MIXED),
}
"""Name -> whether rsLoRA, and module -> (rank, alpha). A tied head has the embedding's adapter, not its own."""

ARCHITECTURE = (
    _stack("stack", 2, 0, 1, 0, 1),
    _stack("stack-half", 1.5, 0, 1, 0),
    _stack("stack-interleave", 2, 0, 0, 1, 1, order="interleave"),
    _stack("stack-append", 2, 0, 1, 0, 1, order="append"),
    _stack("stack-list", [1, 0, 1], 1, 0, 1, init="copy"),
    _stack("stack-frozen", 2, 0, 1, 0, 1, frozen=("h.0",)),
    _stack("identity", 2, 0, 1, 0, 1, init="identity"),
    _stack("identity-interleave", 2, 0, 0, 1, 1, init="identity", order="interleave"),
    _stack("identity-list", [0, 1, 1, 0, 0], 0, 1, 1, 0, 0, init="identity"),
    _stack("identity-frozen", 2, 0, 1, 0, 1, init="identity", frozen=("h.*", "wte")),
    _wide("widen", 2),
    _wide("widen-part", 1.25),
    _wide("widen-many", 5),
    _wide("widen-frozen", 2, frozen=("mlp.0",)),
    _wide("widen-uneven", 2, split="uneven"),
    _wide("widen-even", 1.5, split="even"),
    _wide("widen-newborn", 1.5, split="newborn"),
    _wide("widen-noise", 2, noise=0.1),
    _wide("widen-alias", 2, "increase_hidden_dim"),
    _wide("width", 72, "set_mlp_width"),
    _wide("width-even", 96, "set_mlp_width", split="even"),
    _wide("width-newborn", 72, "set_mlp_width", split="newborn"),
    _wide("width-noise", 96, "set_mlp_width", split="uneven", noise=0.1),
    _same("width-same", "set_mlp_width", 64, inert=True),
    _same("freeze", "freeze_layer", "mlp.0"),
    _same("freeze-glob", "freeze_layer", "attn.*"),
    _same("freeze-range", "freeze_layer", "ln_1.0-1"),
    _same("freeze-list", "freeze_layer", ["wte", "lm_head", "h.1"]),
    _same("freeze-again", "freeze_layer", "mlp.0", "mlp.0", inert=True),
    _same("unfreeze", "unfreeze_layer", "attn.0", "attn.0", "mlp.1"),
    _same("unfreeze-all", "unfreeze_layer", "*", "h.0", "wte"),
    _same("unfreeze-none", "unfreeze_layer", "wpe", "attn.0", inert=True),
    _same("reset", "reset_optimizer_state", None),
    _same("reset-part", "reset_optimizer_state", ["attn.0", "wte"], "mlp.1"),
    # The same with adapters.
    _stack("lora-stack", 2, 0, 1, 0, 1, lora="lora"),
    _stack("lora-stack-interleave", 2, 0, 0, 1, 1, order="interleave", lora="rslora"),
    _stack("lora-stack-list", [1, 1, 1], 1, 1, 1, lora="lora", frozen=("attn.1", "wte")),
    _stack("lora-identity", 2, 0, 1, 0, 1, init="identity", lora="rslora"),
    _stack("lora-identity-list", [0, 1, 1, 0], 0, 1, 1, 0, init="identity", lora="lora", frozen=("h.1",)),
    _wide("lora-widen", 2, lora="lora"),
    _wide("lora-widen-even", 1.5, split="even", lora="rslora"),
    _wide("lora-widen-newborn", 1.5, split="newborn", lora="lora", frozen=("attn.0",)),
    _wide("lora-widen-noise", 2, noise=0.1, lora="lora"),
    _same("lora-freeze", "freeze_layer", ["attn.0", "ln_f", "mlp.1", "wte"], lora="lora"),
    _same("lora-unfreeze", "unfreeze_layer", "*", "h.0", "wte", lora="rslora"),
    _same("lora-reset", "reset_optimizer_state", ["attn.*", "wte"], "mlp.1", lora="lora"),
    # Ranks.
    _lora("attn-make", "set_attn_lora_rank", 4, on="", random=True),
    _lora("attn-make-frozen", "set_attn_lora_rank", 4, "attn.1", on="", random=True, alpha=2),
    _lora("attn-raise", "set_attn_lora_rank", 8, random=True),
    _lora("attn-raise-rs", "set_attn_lora_rank", 8, "h.0", on="rslora", random=True),
    _lora("attn-lower", "set_attn_lora_rank", 2, residual="merge"),
    _lora("attn-lower-rs", "set_attn_lora_rank", 1, "attn.0", on="rslora"),
    _lora("attn-drop", "set_attn_lora_rank", 1, preserving=False, residual="drop"),
    _lora("attn-mixed", "set_attn_lora_rank", 3, random=True, alpha=12),
    _lora("attn-remove", "set_attn_lora_rank", 0, "attn.1"),
    _lora("embedding-make", "set_embedding_lora_rank", 2, on="", random=True),
    _lora("embedding-raise", "set_embedding_lora_rank", 5, on="rslora", random=True, alpha=5),
    _lora("embedding-lower", "set_embedding_lora_rank", 1),
    _lora("embedding-drop", "set_embedding_lora_rank", 1, on="rslora", preserving=False, residual="drop"),
    _lora("embedding-same", "set_embedding_lora_rank", 3, inert=True),
    _lora("embedding-remove", "set_embedding_lora_rank", 0),
    _lora("layer-make", "set_layer_lora_rank", ["mlp.0", 3], on="", random=True, alpha=4.5),
    _lora("layer-make-beside", "set_layer_lora_rank", ["wpe", 3], on="rslora", random=True),
    _lora("layer-raise", "set_layer_lora_rank", ["attn.1", 9], random=True),
    _lora("layer-lower", "set_layer_lora_rank", ["mlp.1", 1], on="rslora"),
    _lora("layer-drop", "set_layer_lora_rank", ["mlp.0-1", 1], preserving=False, random=True, residual="drop"),
    _lora("layer-glob", "set_layer_lora_rank", ["mlp.*", 4], random=True),
    _lora("layer-remove", "set_layer_lora_rank", ["attn.0", 0]),
    _lora("decrease-attn", "decrease_attn_lora_scaling", 2, random=True),
    _lora("decrease-attn-lower", "decrease_attn_lora_scaling", 0.4, on="rslora", residual="merge"),
    _lora("decrease-attn-drop", "decrease_attn_lora_scaling", 0.2, preserving=False, residual="drop"),
    _lora("decrease-vocab", "decrease_vocab_lora_scaling", 2, on="rslora", random=True),
    _lora("decrease-vocab-lower", "decrease_vocab_lora_scaling", 0.5),
    _lora("decrease-vocab-drop", "decrease_vocab_lora_scaling", 0.5, preserving=False, residual="drop"),
    # Merges and alpha.
    _lora("merge", "merge_lora_weights", None, random=True),
    _lora("merge-rs", "merge_lora_weights", None, "attn.0", "wte", on="rslora", random=True, restart=True),
    _lora("merge-remove", "merge_lora_weights", None, restart=False),
    _lora("merge-remove-rs", "merge_lora_weights", None, "h.1", on="rslora", restart=False),
    _lora("merge-nothing", "merge_lora_weights", None, on="", inert=True),
    _lora("alpha", "change_lora_alpha", 2, preserving=False),
    _lora("alpha-rs", "change_lora_alpha", 0.4, "mlp.1", on="rslora", preserving=False, compensate=False),
    _lora("alpha-compensate", "change_lora_alpha", 3, compensate=True),
    _lora("alpha-compensate-rs", "change_lora_alpha", 0.3, "wte", on="rslora", compensate=True),
    _lora("alpha-none", "change_lora_alpha", 2, on="", inert=True),
)

BEFORE = Settings(1e-3, batch_size=12, grad_accum=3, warmup_steps=7, eval_iters=5, eval_interval=9, lr_anchor=2)

SETTINGS: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("change_lr", 2.0, {"learning_rate": 2e-3}),
    ("change_lr", 0.5, {"learning_rate": 5e-4}),
    ("set_lr", 3e-4, {"learning_rate": 3e-4}),
    ("change_warmup_iters", 1.5, {"warmup_steps": 10}),  # 10.5
    ("change_warmup_iters", 0.1, {"warmup_steps": 0}),
    ("set_warmup_iters", 0, {"warmup_steps": 0}),
    ("set_warmup_iters", 100, {"warmup_steps": 100}),
    ("reset_lr_schedule", None, {"lr_anchor": 40}),
    ("change_batch_size", 1.6, {"batch_size": 19}),  # 19.2
    ("change_batch_size", 0.01, {"batch_size": 1}),
    ("set_batch_size", 5, {"batch_size": 5}),
    ("set_batch_size", 1e2, {"batch_size": 100}),
    ("set_batch_size_relative", 1, {"batch_size": 8}),
    ("set_batch_size_relative", 0.1, {"batch_size": 8}),
    ("change_grad_accum", 2.5, {"grad_accum": 7}),  # 7.5
    ("change_grad_accum", 0.1, {"grad_accum": 1}),
    ("set_grad_accum", 4, {"grad_accum": 4}),
    ("change_eval_iters", 0.5, {"eval_iters": 2}),  # 2.5
    ("change_eval_iters", 0.1, {"eval_iters": 1}),
    ("set_eval_iters", 6, {"eval_iters": 6}),
    ("change_eval_interval", 0.5, {"eval_interval": 4}),  # 4.5
    ("change_eval_interval", 0.01, {"eval_interval": 1}),
    ("set_eval_interval", 3, {"eval_interval": 3}),
)
"""Operation, value, and what differs from `BEFORE` after it was applied at step 40."""


MEASURED: tuple[tuple[Mapping[str, Any], Mapping[str, float], dict[str, Any]], ...] = (
    ({"name": "adjust_batch_size", "value": None}, {"batch_size": 64}, {"batch_size": 64}),
    ({"name": "adjust_batch_size", "value": {"target_vram_percent": 50}}, {"batch_size": 8}, {"batch_size": 8}),
    (  # 36 samples a step, by 2 processes
        {"name": "adjust_batch_size", "value": {"max_batch_size": 16}, "keep_effective": True},
        {"batch_size": 8},
        {"batch_size": 8, "grad_accum": 5, "step_samples": 72},
    ),
    (
        {"name": "adjust_batch_size", "value": None, "keep_effective": True},
        {"batch_size": 512},
        {"batch_size": 36, "grad_accum": 1},
    ),
)
"""An operation that measures, what it measured, and what differs from `BEFORE` after it in a run of 2 processes."""


STAGES: tuple[tuple[str, Any], ...] = (("advance_stage", None), ("advance_stage", "finetune"))
"""Operations on the course of a run, which leave model and settings alone: see tests/trainer/test_stages.py."""


def without_case(
    operations: Mapping[str, type[Operation]],
    architecture: Iterable[Mapping[str, Any]],
    hyperparameters: Iterable[str],
) -> list[str]:
    """What of the registry no case covers: operations, aliases, and values of options that are a choice."""
    written = list(architecture)
    missing = []
    for name, kind in operations.items():
        if not issubclass(kind, ArchitectureOperation):
            missing += [name] if name not in hyperparameters else []
            continue
        names = {name, *kind.aliases}
        missing += sorted(names - {case["name"] for case in written})
        for field, info in kind.model_fields.items():
            if field in ("name", "value"):
                continue
            seen = [case[field] for case in written if case["name"] in names and field in case]
            choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
            if not seen:
                missing.append(f"{name}.{field}")
            missing += [f"{name}.{field}={choice}" for choice in choices if choice not in [info.default, *seen]]
    return missing


if _missing := without_case(
    OPERATIONS,
    [case.written for case in ARCHITECTURE],
    {name for name, *_ in SETTINGS} | {written["name"] for written, *_ in MEASURED} | {name for name, _ in STAGES},
):
    raise LookupError(f"tests/conformance/cases.py: no case for {', '.join(_missing)}")
