"""Models that FSDP2 divides among processes: their tensors, transplants and checkpoints."""

from morphing_trainer.sharding.moving import ShardedMover
from morphing_trainer.sharding.tensors import collected, gathered, is_sharded, local_part, reshard, whole

__all__ = ["ShardedMover", "collected", "gathered", "is_sharded", "local_part", "reshard", "whole"]
