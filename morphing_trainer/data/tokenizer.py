"""Tokenizers: one trained on the spot, or one loaded by name or folder. Both are plain `transformers` tokenizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from morphing_trainer.data.fingerprints import fingerprint
from morphing_trainer.data.hub import first_line, hub_problem, looks_local
from morphing_trainer.data.store import building, cache_folder
from morphing_trainer.errors import DataError

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257
"""Every byte, and the end-of-text token."""
TRAINER_VERSION = 1
"""To be raised when the same texts give another tokenizer."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, with at most `vocab_size` tokens, learnt from `texts`.

    The same texts give the same tokenizer. It has fewer tokens if the texts have too few pairs to merge, encodes any
    text without loss, and sets no `model_max_length`: that is the model's.

    Raises:
        DataError: if `vocab_size` has no room for all bytes and the end-of-text token.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size: must be at least {MIN_VOCAB_SIZE} (256 bytes and the end-of-text token), is {vocab_size}."
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return _wrapped(bpe)


def trained_tokenizer(texts: Callable[[], Iterable[str]], source: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """`train_tokenizer`, or what it made for an earlier run.

    Args:
        texts: gives the texts to learn from, if it comes to that.
        source: a name for those texts.
        vocab_size: tokens at most.
    """
    folder = cache_folder() / fingerprint(tokenizer=TRAINER_VERSION, source=source, vocab_size=vocab_size)
    file = folder / "tokenizer.json"
    if file.is_file():
        with contextlib.suppress(Exception):  # what the library raises for a damaged file has no type of its own
            return _wrapped(Tokenizer.from_file(str(file)))
    made = train_tokenizer(texts(), vocab_size)
    with building(folder, overwrite=True) as unfinished:
        made.backend_tokenizer.save(str(unfinished / file.name))
    return made


def _wrapped(bpe: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,  # some versions would drop spaces before punctuation when decoding
    )


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub repository or a local folder. Code that comes with it is not run.

    Raises:
        DataError: if it does not exist, cannot be reached or cannot be read.
    """
    where = f"tokenizer {name_or_path!r}"
    local = looks_local(name_or_path)
    if local and not Path(name_or_path).is_dir():
        raise DataError(f"{where}: there is no such folder. Check the path (from {Path.cwd()}), or give a Hub id.")
    problem = None if local else hub_problem()
    try:
        # Without a connection only the local cache is asked: a look-up on the Hub would be retried for a minute.
        tokenizer = AutoTokenizer.from_pretrained(
            name_or_path, local_files_only=local or problem is not None, trust_remote_code=False
        )
    except BaseException as error:  # whatever the libraries raise for the many ways a folder can be damaged
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, for hostile ones
            raise
        if problem is not None:
            raise DataError(
                f"{where}: is neither a local folder nor in the local cache, and the Hub cannot be reached "
                f"({problem}). Check the connection, or give a local folder."
            ) from error
        instead = (
            "Give a folder that `save_pretrained` of a tokenizer wrote."
            if local
            else "Check the name; for a private or gated repository, log in with `hf auth login`."
        )
        raise DataError(f"{where}: cannot be loaded ({first_line(error)}). {instead}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    # A folder with nothing but a model's config.json gives, without an error, a tokenizer of special tokens alone.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise DataError(f"{where}: has no vocabulary. Give a folder or repository that a tokenizer was saved to.")
    return tokenizer


def check_fits(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Raises DataError if the tokenizer has tokens that a model with `vocab_size` embeddings does not know."""
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"tokenizer: has {len(tokenizer)} tokens, but the model's vocabulary has {vocab_size}. Set vocab_size to "
            f"{len(tokenizer)} or more for a new model, or use the tokenizer that belongs to the model."
        )
