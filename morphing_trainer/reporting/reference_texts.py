"""What the reference says that no class can tell: one example per operation, and what an entry's other keys mean."""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, dict[str, Any]] = {
    "change_lr": {"value": 0.5, "trigger_loss": 3.2, "max_wait_iters": 20000},
    "set_lr": {"value": 0.0003, "max_wait_iters": 5000},
    "change_warmup_iters": {"value": 0.5, "max_wait_iters": 0},
    "set_warmup_iters": {"value": 200, "max_wait_iters": 0},
    "reset_lr_schedule": {"value": None, "max_wait_iters": 0, "desc": "after a stack_layers"},
    "change_batch_size": {"value": 2, "when": {"at_tokens": 20000000}},
    "set_batch_size": {"value": 64, "max_wait_iters": 10000},
    "set_batch_size_relative": {"value": 0.5, "max_wait_iters": 0, "desc": "make room before growing"},
    "adjust_batch_size": {
        "value": {"target_vram_percent": 82, "max_batch_size": 256},
        "keep_effective": True,
        "max_wait_iters": 0,
    },
    "change_grad_accum": {"value": 2, "when": {"plateau": {"window": 5, "slope": 0.05}}},
    "set_grad_accum": {"value": 8, "max_wait_iters": 10000},
    "change_eval_iters": {"value": 4, "trigger_loss": 3.0, "desc": "finer differences need more batches"},
    "set_eval_iters": {"value": 200, "trigger_loss": 3.0},
    "change_eval_interval": {"value": 0.5, "max_wait_iters": 0},
    "set_eval_interval": {"value": 250, "max_wait_iters": 0},
    "reset_optimizer_state": {"value": ["wte", "h.0-3"], "max_wait_iters": 1000},
    "stack_layers": {"value": 2, "init": "identity", "order": "interleave", "trigger_loss": 4.0, "reevaluate": True},
    "widen_mlp": {"value": 2, "split": "uneven", "trigger_loss": 3.8, "max_wait_iters": 10000},
    "set_mlp_width": {"value": 4096, "split": "newborn", "max_wait_iters": 10000},
    "decrease_attn_lora_scaling": {"value": 2, "trigger_loss": 3.6, "max_wait_iters": 10000},
    "decrease_vocab_lora_scaling": {"value": 0.5, "residual": "merge", "max_wait_iters": 10000},
    "set_attn_lora_rank": {"value": 8, "alpha": 16, "max_wait_iters": 5000},
    "set_embedding_lora_rank": {"value": 0, "max_wait_iters": 20000, "desc": "train the embedding itself from here on"},
    "set_layer_lora_rank": {"value": ["attn.2", 16], "max_wait_iters": 2000},
    "merge_lora_weights": {"value": None, "restart": True, "max_wait_iters": 1000, "repeat": "end"},
    "change_lora_alpha": {"value": 2, "compensate": True, "max_wait_iters": 1000},
    "advance_stage": {"value": "finetune", "when": {"plateau": {"window": 5, "slope": 0.01}}},
    "freeze_layer": {"value": ["wte", "wpe", "attn.0-3", "mlp.*"], "max_wait_iters": 0},
    "unfreeze_layer": {"value": "h.*", "when": {"plateau": {"window": 5, "slope": 0.01}}},
}
"""Operation -> an entry of a schedule, without its name."""

CONDITION_EXAMPLES: dict[str, dict[str, Any]] = {
    "loss_below": {"loss_below": 3.5},
    "waited": {"waited": 1000},
    "at_step": {"at_step": 5000},
    "at_share": {"at_share": 0.7},
    "at_tokens": {"at_tokens": 20000000},
    "rank_use_above": {"rank_use_above": 0.8},
    "plateau": {"plateau": {"window": 5, "slope": 0.05}},
    "stage": {"stage": {"name": "finetune", "then": {"waited": 200}}},
    "all": {"all": [{"waited": 1000}, {"plateau": {"window": 5, "slope": 0.05}}]},
    "any": {"any": [{"loss_below": 3.5}, {"waited": 1000}]},
}
"""Condition -> what may stand under `when:`."""

COMPONENTS = """\
`attn.N`, `mlp.N`, `ln_1.N`, `ln_2.N` are the parts of block N, `h.N` is the whole block; `wte`, `wpe`, `ln_f` and
`lm_head` are the token embedding, the position embedding, the last norm and the head. Layers count from 0. Ranges
(`attn.0-3`, both ends included), globs (`mlp.*`, `*`) and lists of all these name several.
"""
"""How a schedule names parts of a model. Markdown."""

ENTRY_KEYS: tuple[tuple[str, str, str, str], ...] = (
    ("trigger_loss", "number from 0, or `.inf`", "", "fires at an evaluation whose loss is below it"),
    ("max_wait_iters", "whole number from 0", "", "fires this many steps after the previous operation, exactly then"),
    ("when", "a [condition](#triggers)", "", "in place of the two above"),
    ("reevaluate", "`true` or `false`", "`false`", "show the loss right before and after it; fires nothing"),
    (
        "guard",
        "`{max_loss_increase: 0.1, within_steps: 200}`",
        "",
        "undo it if the loss stays up, see [Guards](#guards)",
    ),
    ("desc", "text", "", "shown and kept in the journal"),
    ("completed", "`true` or `false`", "`false`", "already done, in an earlier run: the entry is stepped over"),
    ("repeat", "whole number from 1, or `end`", "", "how often it is done; see [Repeating](#repeating)"),
)
"""Key of an entry beside the operation's own, type, default, what it says. Markdown."""

STAGE_KEYS = {
    "dataset": "A file or files, a Hub id, a local or prepared folder, or demo.",
    "mix": "Several sources in place of dataset, each with a weight.",
    "weight": "Samples of this source in proportion to the others.",
    "epochs": "Length in passes over the data; give this, steps or tokens.",
    "steps": "Length in optimizer steps; give this, epochs or tokens.",
    "tokens": "Length in training tokens; give this, epochs or steps.",
    "learning_rate": "Peak rate from the stage's beginning on; else it stays as it is.",
    "schedule": "Operations of this stage: a file, a list, or a mapping with operations and defaults.",
    "desc": "For the reader.",
    "dataset_config": "Configuration of a Hub data set.",
    "validation_file": "Text to validate on, in place of a part that is held out.",
    "train_split": "Split of a Hub data set to train on.",
    "text_column": "Column that holds the text.",
    "validation_split": "Share of the text that is held out for validation.",
    "streaming": "Read as a stream; only tokens are kept on disk.",
    "max_documents": "Read at most so many documents.",
    "sample_mode": "packing joins documents and cuts blocks; continuation cuts each text at sentence ends.",
    "language": "Of the text, for sentence ends: an ISO 639 code such as en.",
    "block_size": "Tokens of a sample.",
}
"""Key of a stage of a training plan, or of a source in its mix -> what it says."""
