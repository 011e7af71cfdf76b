"""Text of any length, for measuring: words with natural frequencies, in sentences and paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = 50_000
_SYLLABLES = [first + vowel for first in (*"bcdfghklmnprstvw", "st", "th", "br") for vowel in "aeiou"]


def paragraphs(seed: int = 0) -> Iterator[str]:
    """Paragraphs without end, of about 600 characters each, always the same ones."""
    rng = np.random.default_rng(seed)
    words = sorted({"".join(rng.choice(_SYLLABLES, rng.integers(1, 5))) for _ in range(WORDS)})
    frequencies = 1 / np.arange(1, len(words) + 1)  # Zipf's law
    steps = np.cumsum(frequencies / frequencies.sum())
    order = np.array(words)[rng.permutation(len(words))]
    while True:
        drawn = order[np.searchsorted(steps, rng.random(100_000))].tolist()
        at = 0
        while at < len(drawn) - 120:
            sentences = []
            for length in rng.integers(5, 25, size=6).tolist():
                sentences.append(" ".join(drawn[at : at + length]).capitalize() + ".")
                at += length
            yield " ".join(sentences)


def write_corpus(path: Path, megabytes: float) -> None:
    """A text file of so many millions of bytes."""
    left = int(megabytes * 1e6)
    with path.open("w", encoding="utf-8") as file:
        for paragraph in paragraphs():
            left -= file.write(paragraph + "\n\n")
            if left <= 0:
                return
