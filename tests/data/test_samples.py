from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from morphing_trainer.data.samples import Blocks, Continuations, collate
from tests.support import tiny_model


def continuations(*samples: tuple[int, int], block_size: int = 8) -> Continuations:
    """Samples of (prompt, truth) tokens each, which are 1, 2, 3, ... throughout; each is a text of its own."""
    sizes = [prompt + truth for prompt, truth in samples]
    return Continuations(
        np.arange(1, sum(sizes) + 1, dtype=np.uint16),
        np.cumsum([0, *sizes]),
        np.array([prompt for prompt, _ in samples], np.int32),
        np.arange(len(samples)),
        block_size,
    )


def test_the_loss_counts_on_the_truth_alone() -> None:
    data = continuations((2, 3), (1, 1))
    assert data[0]["input_ids"].tolist() == [1, 2, 3, 4, 5]
    assert data[0]["labels"].tolist() == [-100, -100, 3, 4, 5]
    assert data[-1]["labels"].tolist() == [-100, 7]
    assert [sample["input_ids"].tolist() for sample in data.__getitems__([1, 0])] == [[6, 7], [1, 2, 3, 4, 5]]
    with pytest.raises(IndexError, match="sample 2 of 2"):
        data[2]


def test_shorter_samples_are_filled_up_on_the_right() -> None:
    data = continuations((2, 3), (1, 1), (1, 2))
    batch = collate(data.__getitems__([0, 1, 2]))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 9, 10, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, 5], [-100, 7, *[-100] * 3], [-100, 9, 10, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_there_is_no_mask_where_nothing_is_filled_up() -> None:
    batch = collate(continuations((2, 3), (1, 4)).__getitems__([0, 1]))
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["labels"].tolist() == [[-100, -100, 3, 4, 5], [-100, 7, 8, 9, 10]]


def test_blocks_and_continuations_go_into_one_batch() -> None:
    blocks = Blocks(np.arange(12, dtype=np.uint16).reshape(3, 4))
    batch = collate([*blocks.__getitems__([2]), continuations((2, 3))[0]])
    assert batch["labels"].tolist() == [[8, 9, 10, 11, -100], [-100, -100, 3, 4, 5]]
    same = collate([blocks[0], continuations((1, 3))[0]])
    assert same["labels"].tolist() == [[0, 1, 2, 3], [-100, 2, 3, 4]]


def test_filling_up_changes_no_loss() -> None:
    model, data = tiny_model().eval(), continuations((2, 3), (1, 9), (3, 4), block_size=16)
    together = collate(data.__getitems__([0, 1, 2]))
    with torch.no_grad():
        logits = model(input_ids=together["input_ids"], attention_mask=together["attention_mask"]).logits
        for row in range(3):
            alone = collate([data[row]])
            length = alone["input_ids"].shape[1]
            torch.testing.assert_close(logits[row, :length], model(input_ids=alone["input_ids"]).logits[0])


@pytest.mark.parametrize("kind", ["blocks", "continuations"])
def test_what_lies_in_a_file_is_sent_to_a_worker_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(100_000, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, np.uint16, "r")
    if kind == "blocks":
        data: Blocks | Continuations = Blocks(tokens[: 24_999 * 4].reshape(24_999, 4), "name")
    else:
        offsets = np.array([0, 40_000, 100_000])
        data = Continuations(tokens, offsets, np.array([1, 2], np.int32), np.array([0]), 60_000, "name")
    sent = pickle.dumps(data)
    assert len(sent) < 1500
    received = pickle.loads(sent)
    assert isinstance(received.tokens, np.memmap)
    assert received.fingerprint == "name"
    assert len(received) == len(data)
    assert np.array_equal(received[1]["labels"], data[1]["labels"])


def test_a_part_of_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    np.arange(10_000, dtype=np.uint16).tofile(path)
    tokens = np.memmap(path, np.uint16, "r")
    for part in (tokens[4096:8192], tokens[2:10], np.memmap(path, np.uint16, "r", offset=4096)[:8]):
        received = pickle.loads(pickle.dumps(Blocks(part.reshape(-1, 8))))
        assert np.array_equal(received.tokens.ravel(), part)
