"""`morph sample`: a model writes, from a prompt or from nothing."""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TextStreamer
from transformers.utils import logging as transformers_logging

from morphing_trainer.cli.sample_options import read_options, read_prompt
from morphing_trainer.data.tokenizer import check_fits, load_tokenizer
from morphing_trainer.errors import ConfigError, DataError
from morphing_trainer.models import load_model
from morphing_trainer.run.finding import find_model
from morphing_trainer.validation.generation import Sampling, fitting, write_on

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line ends: a model may write any byte
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


class _Printer(TextStreamer):  # type: ignore[misc, unused-ignore]
    """Prints words as they are complete. The end of one call of `generate` is not the end of the text."""

    def end(self) -> None:
        self.next_tokens_are_prompt = True

    def finish(self) -> None:
        """The text is complete: print what is held back."""
        super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        print(printable(text), end="\n" if stream_end else "", flush=True)


def printable(text: str) -> str:
    """`text` without control characters, which could take over a terminal; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def main(argv: Sequence[str]) -> int:
    """Write texts as the options in `argv` say; returns the process's exit code.

    Raises:
        MorphError: for bad input.
        KeyboardInterrupt: as it comes, after the line has been ended.
    """
    options = read_options(argv)
    try:
        _sample(options)
    except KeyboardInterrupt:
        if not options.json:
            print(flush=True)
        raise
    return 0


def _sample(options: argparse.Namespace) -> None:
    transformers_logging.disable_progress_bar()
    prompt = read_prompt(options.prompt)
    device = _device(options.device)
    source = find_model(options.model)
    _check_tokenizer(options.tokenizer, source)
    model: Any = load_model(source)
    model.to(device)
    tokenizer = load_tokenizer(options.tokenizer or source)
    check_fits(tokenizer, model.config.vocab_size)
    context = _context(prompt, tokenizer)
    limit = model.config.n_positions
    kept = fitting(context, limit)
    if len(kept) < len(context):
        _remark(f"the prompt has {len(context):,} tokens, the model reads {limit:,}: only the last {len(kept):,} count")
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    _remark(f"model {source}, {device}" + (f", seed {seed}" if options.temperature else ""))
    sampling = Sampling(options.temperature, options.top_k, 1.0 if options.top_p is None else options.top_p)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for number in range(options.num_samples):
            torch.manual_seed((seed + number) % 2**63)
            if options.json:
                written = write_on(model, kept, options.max_new_tokens, end=tokenizer.eos_token_id, sampling=sampling)
                drawn = seed + number if options.temperature else None
                print(json.dumps(_record(source, prompt, written, tokenizer, drawn)), flush=True)
                continue
            if options.num_samples > 1:
                print(f"--- text {number + 1} of {options.num_samples}, seed {seed + number} ---")
            print(printable(prompt), end="", flush=True)
            printer = _Printer(
                tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            write_on(
                model,
                kept,
                options.max_new_tokens,
                end=tokenizer.eos_token_id,
                sampling=sampling,
                streamer=printer,
            )
            printer.finish()


def _record(
    source: str, prompt: str, written: list[int], tokenizer: PreTrainedTokenizerBase, seed: int | None
) -> dict[str, Any]:
    text = tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ended = written[-1] == tokenizer.eos_token_id
    return {"model": source, "prompt": prompt, "text": text, "tokens": len(written), "ended": ended, "seed": seed}


def _context(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's tokens; of an empty one end-of-text, after which a new text begins."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    if ids:
        return ids
    if tokenizer.eos_token_id is None:
        raise DataError("--prompt: is empty, and this tokenizer has no end-of-text token to begin with; give a prompt")
    return [tokenizer.eos_token_id]


def _check_tokenizer(name: str | None, source: str) -> None:
    """Before the model is loaded: transformers would make a tokenizer of special tokens alone of a model's config."""
    folder = Path(source)
    if name is None and folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise DataError(
            f"{source}: no tokenizer was saved with this model (a trainer saves the one it gets as processing_class); "
            "name one by --tokenizer"
        )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"--device: there is no device {name!r}; use cpu, cuda or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device: no GPU can be used here, {name!r} was asked for; use cpu or auto")
    return device


def _remark(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


__all__ = ["main", "printable"]
