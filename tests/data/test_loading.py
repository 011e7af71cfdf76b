from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset, RandomSampler
from transformers import default_data_collator

from morphing_trainer.data.cursor import PLACEHOLDER, Cursor
from morphing_trainer.data.loading import QuietLoader, WithPlaceholder, masked_collate
from morphing_trainer.data.samples import Blocks, collate
from morphing_trainer.errors import DataError
from tests.data.test_cursor import sampler_of


def numbered_blocks(count: int, block_size: int = 4) -> Blocks:
    """Blocks whose tokens all are the block's own number."""
    return Blocks(np.repeat(np.arange(count, dtype=np.int32)[:, None], block_size, axis=1))


def ids(batch: dict[str, torch.Tensor]) -> list[int]:
    return [int(row) for row in batch["input_ids"][:, 0]]


def prepared(loader: DataLoader[Any], **arguments: Any) -> Any:
    return prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=False, **arguments)


class Fetched(Dataset[int]):
    """Numbers, that remembers which of them were asked for."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.asked.append(index)
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_loader_stopped_in_mid_epoch_goes_on_where_it_was(workers: int) -> None:
    blocks, seen = numbered_blocks(23), []
    cursor = Cursor(23, seed=5)
    for batch_size, steps in [(3, 2), (2, 3), (4, 99)]:
        sampler = sampler_of(cursor, batch_size)
        loader = DataLoader(blocks, batch_sampler=sampler, collate_fn=collate, num_workers=workers)
        for step, batch in enumerate(loader):
            if step == steps:  # fetched, but not trained on
                break
            seen += ids(batch)
            cursor.advance_to(sampler.layout.position_after(step + 1))
        cursor = Cursor.from_state(cursor.state(), 23)
    assert seen == cursor.arranged.indices.tolist()


def test_a_late_start_fetches_nothing_earlier() -> None:
    data, position = Fetched(1_100_000), 1_000_000
    cursor = Cursor(len(data), seed=1, position=position)
    batches = iter(DataLoader(data, batch_sampler=sampler_of(cursor, 8), collate_fn=list))
    first = next(batches)
    assert first == cursor.arranged.indices[position : position + 8].tolist() == data.asked


@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_equal_those_of_accelerate(drop_last: bool) -> None:
    blocks = numbered_blocks(21)
    plain = DataLoader(blocks, batch_size=4, sampler=RandomSampler(blocks), collate_fn=collate, drop_last=drop_last)
    reference = prepared(plain, use_seedable_sampler=True, data_seed=17)
    cursor = Cursor(21, seed=17)
    sampler = sampler_of(cursor, 4, drop_last=drop_last)
    ours = prepared(DataLoader(blocks, batch_sampler=sampler, collate_fn=collate))
    for _ in range(2):
        assert len(ours) == len(reference)
        for mine, theirs in zip(ours, reference, strict=True):
            assert torch.equal(mine["input_ids"], theirs["input_ids"])
        cursor.next_epoch()


@pytest.mark.parametrize(("length", "workers"), [(8, 0), (9, 0), (10, 0), (11, 0), (13, 0), (9, 2)])
def test_ranks_share_an_epoch_and_only_placeholders_are_masked(length: int, workers: int) -> None:
    per_rank = []
    for rank in range(2):
        sampler = sampler_of(Cursor(length, seed=2), 4, ranks=2, rank=rank)
        per_rank.append(
            list(
                DataLoader(
                    WithPlaceholder(numbered_blocks(length)),
                    batch_sampler=sampler,
                    collate_fn=masked_collate(collate),
                    num_workers=workers,
                )
            )
        )
    seen: list[int] = []
    for step in zip(*per_rank, strict=True):
        for batch in step:
            masked = batch["labels"] == -100
            assert masked.all() or not masked.any()
            seen += [] if masked.all() else ids(batch)
            assert torch.equal(batch["input_ids"][~masked], batch["labels"][~masked])
    assert seen == Cursor(length, seed=2).arranged.indices.tolist()


def test_a_placeholder_adds_nothing_to_a_loss_over_tokens() -> None:
    data = WithPlaceholder(numbered_blocks(3))
    batch = masked_collate(collate)(data.__getitems__([PLACEHOLDER]))
    assert batch["input_ids"].shape == (1, 4)
    logits = torch.zeros(4, 10, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0], reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_placeholders_work_without_batched_fetching_and_with_other_collators() -> None:
    rows: list[dict[str, Any]] = [{"input_ids": [index], "labels": [index]} for index in range(3)]
    data: WithPlaceholder = WithPlaceholder(rows)
    assert len(data) == 3
    assert data.__getitems__([2, 1]) == [rows[2], rows[1]]
    assert data[2] == rows[2]
    batch = masked_collate(default_data_collator)(data.__getitems__([PLACEHOLDER]))
    assert batch["labels"].tolist() == [[-100]]
    assert batch["input_ids"].tolist() == [[0]]


def test_a_placeholder_that_cannot_be_masked_is_an_error() -> None:
    data = WithPlaceholder([{"input_ids": [1]}])
    with pytest.raises(DataError, match=r"no 'labels'.*dataloader_drop_last"):
        masked_collate(default_data_collator)(data.__getitems__([PLACEHOLDER]))


def test_what_workers_need_can_be_sent_to_them() -> None:
    data, gather = pickle.loads(pickle.dumps((WithPlaceholder(numbered_blocks(3)), masked_collate(collate))))
    assert ids(gather(data.__getitems__([2, 0]))) == [2, 0]


@pytest.fixture(params=["torch", "torch with workers", "accelerate"])
def loader(request: pytest.FixtureRequest) -> Any:
    workers = 2 if request.param == "torch with workers" else 0
    plain = DataLoader(numbered_blocks(10), batch_size=3, collate_fn=collate, num_workers=workers)
    return prepared(plain) if request.param == "accelerate" else plain


def draws_while_reading(loader: Any) -> tuple[list[list[int]], torch.Tensor]:
    """All batches, and what the global generator gives in between."""
    torch.manual_seed(7)
    seen, draws = [], []
    for batch in loader:
        seen.append(ids(batch))
        draws.append(torch.rand(()))
    return seen, torch.stack(draws)


def test_a_quiet_loader_leaves_the_random_state_alone(loader: Any) -> None:
    torch.manual_seed(7)
    undisturbed = torch.rand(4)
    seen, draws = draws_while_reading(QuietLoader(loader, preserve_rng=True))
    assert seen == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert torch.equal(draws, undisturbed)


def test_a_loader_that_is_not_quiet_is_the_wrapped_one(loader: Any) -> None:
    seen, draws = draws_while_reading(QuietLoader(loader, preserve_rng=False))
    plain_seen, plain_draws = draws_while_reading(loader)
    assert seen == plain_seen
    assert torch.equal(draws, plain_draws)
    torch.manual_seed(7)
    assert not torch.equal(draws, torch.rand(4)), "if making an iterator draws nothing, quiet loaders are needless"


def test_a_run_taken_up_in_mid_epoch_draws_as_if_never_stopped() -> None:
    def run(position: int, state: torch.Tensor, quiet: bool, steps: int) -> tuple[list[Any], torch.Tensor]:
        torch.set_rng_state(state)
        sampler = sampler_of(Cursor(12, seed=0, position=position), 2)
        loader = QuietLoader(DataLoader(numbered_blocks(12), batch_sampler=sampler, collate_fn=collate), quiet)
        seen = []
        for step, batch in enumerate(loader):
            if step == steps:
                break
            seen.append((ids(batch), torch.rand(()).item()))
            after = torch.get_rng_state()
        return seen, after

    start = torch.Generator().manual_seed(3).get_state()
    whole, _ = run(0, start, quiet=False, steps=6)
    begun, state = run(0, start, quiet=False, steps=2)
    rest, _ = run(4, state, quiet=True, steps=6)
    assert begun + rest == whole


def test_a_quiet_loader_passes_on_what_it_does_not_know() -> None:
    sampler = sampler_of(Cursor(10, seed=0), 3)
    blocks = numbered_blocks(10)
    loader = prepared(DataLoader(blocks, batch_sampler=sampler, collate_fn=collate))
    quiet = QuietLoader(loader, preserve_rng=True)
    assert len(quiet) == 4
    assert quiet.dataset is blocks
    assert quiet.batch_sampler is sampler
    quiet.set_epoch(3)
    assert loader.iteration == 3
    assert not hasattr(QuietLoader(DataLoader(blocks), preserve_rng=True), "set_epoch")


def test_an_empty_quiet_loader_ends_at_once() -> None:
    sampler = sampler_of(Cursor(4, seed=0, position=4), 2)
    assert list(QuietLoader(DataLoader(numbered_blocks(4), batch_sampler=sampler), preserve_rng=True)) == []
