"""Rows of a data set as documents: text, and title, prompt and truth where a row has them.

A row may be a piece of a document that is too long to be held in memory: then `continues` says that the next row goes
on with it, and `before` holds the end of the row before it (None where a document begins).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TEXT, TITLE, PROMPT, TRUTH, BEFORE, CONTINUES = COLUMNS = ("text", "title", "prompt", "truth", "before", "continues")
Batch = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Document:
    """A row. `text` is what is learnt: the truth, in a row with a prompt.

    Attributes:
        text: never None, and possibly blank.
        title: without space around it, "" if there is none.
        prompt: what stands before `text`, "" if there is nothing.
        before: the end of the row that this one goes on with, "" if it begins a document.
        continues: whether the next row goes on with this document.
        begins: whether a document begins here.
    """

    text: str
    title: str = ""
    prompt: str = ""
    before: str = ""
    continues: bool = False
    begins: bool = True

    @property
    def blank(self) -> bool:
        """Whether there is nothing to learn."""
        return not self.text or self.text.isspace()

    @property
    def whole(self) -> str:
        """All of it as one text: the title in a line of its own, the prompt, the text."""
        return f"{self.heading}{self.prompt}{self.text}"

    @property
    def heading(self) -> str:
        """The title as a line of its own."""
        return f"{self.title}\n" if self.title else ""


def documents(batch: Batch) -> Iterator[Document]:
    """The rows of `batch`, columns of equal length, as documents."""
    count = len(next(iter(batch.values()))) if batch else 0
    nothing: Sequence[Any] = [None] * count
    columns = [batch.get(name, nothing) for name in COLUMNS]
    for text, title, prompt, truth, before, continues in zip(*columns, strict=True):
        asked = prompt is not None and truth is not None
        yield Document(
            text=(truth if asked else text) or "",
            title=(title or "").strip() if before is None else "",
            prompt=prompt if asked else "",
            before=before or "",
            continues=bool(continues),
            begins=before is None,
        )
