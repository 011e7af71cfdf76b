"""The loaders of a run: one for each segment of an epoch, and the first batches of the evaluation set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Subset
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from morphing_trainer.data.cursor import Batch, Cursor, CursorBatchSampler
from morphing_trainer.data.loading import QuietLoader, WithPlaceholder, masked_collate


def segment_loader(
    dataset: Any,
    collate: Callable[[Any], Any],
    cursor: Cursor,
    batch: Batch,
    args: TrainingArguments,
    device: torch.device,
    *,
    preserve_rng: bool,
) -> tuple[QuietLoader, CursorBatchSampler]:
    """A loader over what is left of the cursor's epoch, with the worker settings of `args`."""
    sampler = CursorBatchSampler(cursor, batch, args.process_index)
    if args.world_size > 1:
        dataset, collate = WithPlaceholder(dataset), masked_collate(collate)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    # One process: the sampler has shared the samples out already.
    prepared = prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)
    return QuietLoader(prepared, preserve_rng), sampler


def first_samples(dataset: Any, count: int) -> Any:
    """The first `count` samples of a map-style data set, of its own type where it can select."""
    if len(dataset) <= count:
        return dataset
    return dataset.select(range(count)) if hasattr(dataset, "select") else Subset(dataset, range(count))
