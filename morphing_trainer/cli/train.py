"""`train.py`: arguments -> text -> tokenizer -> model -> `MorphingTrainer` -> a plain transformers model on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from datasets.utils.logging import disable_progress_bar
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from morphing_trainer.cli.arguments import Arguments, DataArguments, parse
from morphing_trainer.data.packing import Blocks, collate, pack
from morphing_trainer.data.sources import TextSplits, load_texts
from morphing_trainer.data.tokenizer import check_fits, load_tokenizer, train_tokenizer
from morphing_trainer.errors import MorphError
from morphing_trainer.lora import add_adapters
from morphing_trainer.models import load_model, new_model, scratch_config
from morphing_trainer.run.folder import MODEL, check_output_dir
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
        if PartialState().is_main_process:
            advice = "; go on with --resume_from_checkpoint true" if interruption.checkpoint else ""
            print(f"{interruption}{advice}", file=sys.stderr)
        return int(interruption.code or 0)
    except MorphError as error:
        if PartialState().is_main_process:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        PartialState().destroy_process_group()


def train(arguments: Arguments) -> MorphingTrainer:
    """Train as the arguments say. What is cheap to check is checked first."""
    args = arguments.training
    resume = args.resume_from_checkpoint
    check_output_dir(str(args.output_dir), resume=resume is not None, overwrite=args.overwrite_output_dir)
    schedule = Schedule.of(args.scaling_schedule_file)
    _quieten()
    with args.main_process_first(desc="preparing the data"):
        texts = _texts(arguments.data, args.seed)
        tokenizer = _tokenizer(arguments, texts)
        model = add_adapters(_model(arguments, tokenizer), arguments.lora, args.seed)
        check_fits(tokenizer, model.config.vocab_size)
        blocks = _blocks(texts, tokenizer, arguments.data.block_size, model.config.n_positions)
    trainer = MorphingTrainer(
        model,
        args,
        train_dataset=blocks[0],
        eval_dataset=blocks[1],
        data_collator=collate,
        processing_class=tokenizer,
        schedule=schedule,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_whole(Path(str(args.output_dir)) / MODEL)
    return trainer


def _quieten() -> None:
    """The run has its own display; the progress bars of others would break it."""
    disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _texts(data: DataArguments, seed: int) -> TextSplits:
    return load_texts(
        dataset_name=data.dataset_name,
        dataset_config=data.dataset_config,
        train_file=data.train_file,
        validation_file=data.validation_file,
        text_column=data.text_column,
        validation_split=data.validation_split,
        seed=seed,
    )


def _tokenizer(arguments: Arguments, texts: TextSplits) -> PreTrainedTokenizerBase:
    """The named one, the checkpoint's, or one trained on the training text."""
    name = arguments.data.tokenizer_name or arguments.model.model_name_or_path
    if name is not None:
        return load_tokenizer(name)
    return train_tokenizer(texts.train["text"], arguments.model.vocab_size)


def _model(arguments: Arguments, tokenizer: PreTrainedTokenizerBase) -> GPT2LMHeadModel:
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
    config = scratch_config(chosen, len(tokenizer), arguments.data.block_size, tokenizer.eos_token_id)
    return new_model(config, arguments.training.seed)


def _blocks(
    texts: TextSplits, tokenizer: PreTrainedTokenizerBase, block_size: int, n_positions: int
) -> tuple[Blocks, Blocks]:
    train, validation = (
        pack(split, tokenizer, block_size, n_positions=n_positions, where=where)
        for split, where in ((texts.train, "training data"), (texts.validation, "validation data"))
    )
    return train, validation


__all__ = ["main", "train"]
