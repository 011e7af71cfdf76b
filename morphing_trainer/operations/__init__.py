"""The operations, one class each, and their registry."""

from __future__ import annotations

from morphing_trainer.operations.base import (
    ArchitectureOperation,
    HyperparameterOperation,
    MeasuredOperation,
    Morph,
    Operation,
)
from morphing_trainer.operations.batching import (
    ChangeBatchSize,
    ChangeGradAccum,
    SetBatchSize,
    SetBatchSizeRelative,
    SetGradAccum,
)
from morphing_trainer.operations.depth import StackLayers
from morphing_trainer.operations.evaluation import ChangeEvalInterval, ChangeEvalIters, SetEvalInterval, SetEvalIters
from morphing_trainer.operations.freezing import FreezeLayer, UnfreezeLayer
from morphing_trainer.operations.learning_rate import (
    ChangeLr,
    ChangeWarmupIters,
    ResetLrSchedule,
    SetLr,
    SetWarmupIters,
)
from morphing_trainer.operations.lora import (
    ChangeLoraAlpha,
    DecreaseAttnLoraScaling,
    DecreaseVocabLoraScaling,
    MergeLoraWeights,
    SetAttnLoraRank,
    SetEmbeddingLoraRank,
    SetLayerLoraRank,
)
from morphing_trainer.operations.measured import AdjustBatchSize
from morphing_trainer.operations.optimizer import ResetOptimizerState
from morphing_trainer.operations.stages import AdvanceStage
from morphing_trainer.operations.width import SetMlpWidth, WidenMlp

OPERATIONS: dict[str, type[Operation]] = {
    "change_lr": ChangeLr,
    "set_lr": SetLr,
    "change_warmup_iters": ChangeWarmupIters,
    "set_warmup_iters": SetWarmupIters,
    "reset_lr_schedule": ResetLrSchedule,
    "change_batch_size": ChangeBatchSize,
    "set_batch_size": SetBatchSize,
    "set_batch_size_relative": SetBatchSizeRelative,
    "adjust_batch_size": AdjustBatchSize,
    "change_grad_accum": ChangeGradAccum,
    "set_grad_accum": SetGradAccum,
    "change_eval_iters": ChangeEvalIters,
    "set_eval_iters": SetEvalIters,
    "change_eval_interval": ChangeEvalInterval,
    "set_eval_interval": SetEvalInterval,
    "reset_optimizer_state": ResetOptimizerState,
    "stack_layers": StackLayers,
    "widen_mlp": WidenMlp,
    "set_mlp_width": SetMlpWidth,
    "decrease_attn_lora_scaling": DecreaseAttnLoraScaling,
    "decrease_vocab_lora_scaling": DecreaseVocabLoraScaling,
    "set_attn_lora_rank": SetAttnLoraRank,
    "set_embedding_lora_rank": SetEmbeddingLoraRank,
    "set_layer_lora_rank": SetLayerLoraRank,
    "merge_lora_weights": MergeLoraWeights,
    "change_lora_alpha": ChangeLoraAlpha,
    "freeze_layer": FreezeLayer,
    "unfreeze_layer": UnfreezeLayer,
    "advance_stage": AdvanceStage,
}
"""Every operation under its schedule name, in the order of the reference."""

NAMES: dict[str, type[Operation]] = OPERATIONS | {
    alias: operation for operation in OPERATIONS.values() for alias in operation.aliases
}
"""`OPERATIONS` and their aliases: what a schedule may write."""

__all__ = [
    "NAMES",
    "OPERATIONS",
    "ArchitectureOperation",
    "HyperparameterOperation",
    "MeasuredOperation",
    "Morph",
    "Operation",
]
