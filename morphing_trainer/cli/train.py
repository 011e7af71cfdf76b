"""`train.py`: arguments -> text -> tokenizer -> model -> `MorphingTrainer` -> a plain transformers model on disk."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from morphing_trainer.cli.arguments import Arguments, parse
from morphing_trainer.data.opening import open_data
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.samples import collate
from morphing_trainer.data.tokenizer import check_fits
from morphing_trainer.errors import MorphError
from morphing_trainer.hub.publisher import check_push
from morphing_trainer.layers.evaluating import show_all
from morphing_trainer.lora import add_adapters
from morphing_trainer.models import load_model, new_model, scratch_config
from morphing_trainer.plans import load_plan
from morphing_trainer.plans.opening import open_plan
from morphing_trainer.plans.plan import check_alone
from morphing_trainer.run.consensus import RankError
from morphing_trainer.run.farewell import last_word
from morphing_trainer.run.folder import MODEL, check_start
from morphing_trainer.run.signals import RunInterrupted
from morphing_trainer.schedule import Schedule
from morphing_trainer.trainer import MorphingTrainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run training from command-line arguments; returns the process's exit code (2 for bad input)."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        train(arguments)
        return 0
    except RunInterrupted as interruption:
        if _speaks():
            advice = "; go on with --resume_from_checkpoint true" if interruption.checkpoint else ""
            print(f"{interruption}{advice}", file=sys.stderr)
        return int(interruption.code or 0)
    except MorphError as error:
        if _speaks():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except RankError as error:  # the rank that had it shows where
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        last_word()
        if PartialState._shared_state:
            gc.collect()  # the trainer: threads of gloo that outlive the interpreter abort the process now and then
            PartialState().destroy_process_group()


def _speaks() -> bool:
    """Whether this process tells of what concerns all. From the launcher: accelerate may be what has failed."""
    return os.environ.get("RANK", "0") == "0"


def train(arguments: Arguments) -> MorphingTrainer:
    """Train as the arguments say. What is cheap to check is checked first."""
    args = arguments.training
    resume = args.resume_from_checkpoint
    check_start(str(args.output_dir), resume, overwrite=args.overwrite_output_dir)
    if args.push_to_hub and args.process_index == 0:
        check_push(args)
    plan = None if arguments.data.plan is None else load_plan(arguments.data.plan)
    if plan is not None:
        check_alone(plan, args.scaling_schedule_file)
    schedule = plan.schedule if plan and len(plan.schedule) else Schedule.of(args.scaling_schedule_file)
    _quieten()
    with args.main_process_first(desc="preparing the data"):
        request = DataRequest.of(arguments.data, args.seed)
        opened = [] if plan is None else open_plan(plan, request)
        found = [data for stage in opened for data in stage.data] or [open_data(request)]
        # Without a tokenizer of its own, the run trains one on the text that it begins with.
        named = arguments.data.tokenizer_name or arguments.model.model_name_or_path
        tokenizer = found[0].tokenizer(named, arguments.model.vocab_size)
        longest = max(data.block_size for data in found)
        model = add_adapters(_model(arguments, tokenizer, longest), arguments.lora, args.seed)
        check_fits(tokenizer, model.config.vocab_size)
        stages = [stage.samples(tokenizer, model.config.n_positions) for stage in opened]
        splits = None if opened else found[0].samples(tokenizer, model.config.n_positions)
    show_all(args)
    trainer = MorphingTrainer(
        model,
        args,
        train_dataset=splits.train if splits else None,
        eval_dataset=splits.validation if splits else None,
        stages=stages,
        data_collator=collate,
        processing_class=tokenizer,
        schedule=schedule,
    )
    trainer.described = {"model": arguments.model, "data": arguments.data, "LoRA": arguments.lora}
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_whole(Path(str(args.output_dir)) / MODEL)
    if trainer.pushed is not None:
        print(f"pushed to {trainer.pushed.url}")
    return trainer


def _quieten() -> None:
    """The run has its own display; the progress bars of others would break it."""
    disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _model(arguments: Arguments, tokenizer: PreTrainedTokenizerBase, block_size: int) -> GPT2LMHeadModel:
    """The checkpoint, or a new model whose vocabulary is the tokenizer's."""
    chosen = arguments.model
    if chosen.model_name_or_path is not None:
        return load_model(
            chosen.model_name_or_path,
            revision=chosen.model_revision,
            dtype=chosen.dtype,
            attn_implementation=chosen.attn_implementation,
            dropout=chosen.dropout,
        )
    config = scratch_config(chosen, len(tokenizer), block_size, tokenizer.eos_token_id)
    return new_model(config, arguments.training.seed)


__all__ = ["main", "train"]
