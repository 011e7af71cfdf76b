"""Short names for everything that decides what samples are, so that the same samples are made once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def fingerprint(**parts: Any) -> str:
    """A name for these values, which JSON must know: 32 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for how `tokenizer` turns text into tokens, whatever it is called and wherever it lies."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
        content.append({key: repr(value) for key, value in sorted(tokenizer.init_kwargs.items()) if "path" not in key})
    else:
        content = json.loads(backend.to_str())
        content |= {"truncation": None, "padding": None}  # set by its last call, and again by the next
    return fingerprint(content=content, end_of_text=tokenizer.eos_token_id)
