"""The shown example: what of a sample is prompt and truth, and that making it leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morphing_trainer.validation.example import make_example, prompt_and_truth
from morphing_trainer.validation.generation import GREEDY, Sampling, fitting, write_on
from tests.validation.common import LONGEST, Packed, model, tokenizer


@pytest.mark.parametrize(
    ("labels", "length", "prompt", "truth"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 3, [0, 1, 2, 3], [4, 5, 6]),  # all counts: the first half is the prompt
        ([0, 1, 2, 3, 4, 5, 6, 7], 99, [0, 1, 2, 3], [4, 5, 6, 7]),
        ([-100, 1, 2, 3, 4, 5, 6, 7], 2, [0, 1, 2, 3], [4, 5]),  # nothing predicts the first token
        ([-100, -100, -100, 3, 4, 5, -100, -100], 99, [0, 1, 2], [3, 4, 5]),  # prompt and padding
        ([-100, -100, -100, 3, 4, 5, -100, -100], 2, [0, 1, 2], [3, 4]),
        ([-100, -100, -100, -100, -100, -100, -100, 7], 9, [0, 1, 2, 3, 4, 5, 6], [7]),
    ],
)
def test_prompt_and_truth(labels: list[int], length: int, prompt: list[int], truth: list[int]) -> None:
    sample: Any = {"input_ids": torch.arange(8), "labels": torch.tensor(labels)}
    assert prompt_and_truth(sample, length) == (prompt, truth)
    assert prompt_and_truth({"input_ids": [*range(8)], "labels": labels}, length) == (prompt, truth)


def test_samples_with_nothing_to_show() -> None:
    assert prompt_and_truth({"input_ids": [1, 2], "labels": [1, -100]}, 3) is None
    assert prompt_and_truth({"input_ids": [1]}, 3) is None
    assert prompt_and_truth({"pixels": [1, 2]}, 3) is None
    assert prompt_and_truth({"input_ids": [4, 5]}, 3) == ([4], [5])


def test_what_the_model_writes_is_shown_and_nothing_is_left_behind() -> None:
    shown = model(resid_pdrop=0.9, attn_pdrop=0.9, embd_pdrop=0.9)
    shown.train()
    shown.transformer.h[1].eval()  # somebody's choice
    modes = [module.training for module in shown.modules()]
    random = torch.get_rng_state()
    sample = Packed()[0]
    first = make_example(shown, tokenizer(), sample, 6)
    assert first is not None
    assert first == make_example(shown, tokenizer(), sample, 6), "no dropout"
    assert [module.training for module in shown.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    ids = sample["input_ids"].tolist()
    assert tokenizer()(first.prompt)["input_ids"] == ids[: LONGEST // 2]
    assert first.truth == tokenizer().decode(ids[LONGEST // 2 : LONGEST // 2 + 6])
    expected = ids[: LONGEST // 2]
    shown.eval()
    for _ in range(6):  # the likeliest token, one by one, without a cache
        expected.append(int(shown(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
    assert first.prediction == tokenizer().decode(expected[LONGEST // 2 :])


def by_hand(trained: Any, context: list[int], count: int) -> list[int]:
    """Greedy, the whole window computed anew for every token."""
    window, written = context[-(LONGEST - 1) :], list[int]()
    while len(written) < count:
        if len(window) == LONGEST:
            window = window[-(LONGEST // 2) :]
        token = int(trained(input_ids=torch.tensor([window])).logits[0, -1].argmax())
        window, written = [*window, token], [*written, token]
    return written


@pytest.mark.parametrize("length", [1, LONGEST - 1, LONGEST, 3 * LONGEST])
def test_writing_past_the_last_position(length: int) -> None:
    trained = model(7).eval()
    context = [(5 * place + 1) % 300 for place in range(length)]
    found = write_on(trained, context, 3 * LONGEST, end=None)
    assert len(found) == 3 * LONGEST
    assert found == by_hand(trained, context, 3 * LONGEST)
    assert len(fitting(context, LONGEST)) == min(length, LONGEST - 1)


def test_writing_ends_with_end_of_text() -> None:
    trained = model(7).eval()
    free = write_on(trained, [1, 2, 3], 40, end=None)
    end = free[25]
    assert write_on(trained, [1, 2, 3], 40, end=end) == free[: free.index(end) + 1]


def test_drawing() -> None:
    """The same seed draws the same; of one likeliest token, or of hardly any probability, there is nothing to draw."""
    trained = model(7).eval()

    def drawn(seed: int, sampling: Sampling) -> list[int]:
        torch.manual_seed(seed)
        return write_on(trained, [1, 2, 3], 30, end=None, sampling=sampling)

    hot = Sampling(temperature=1.0)
    assert drawn(1, hot) == drawn(1, hot) != drawn(2, hot)
    greedy = write_on(trained, [1, 2, 3], 30, end=None, sampling=GREEDY)
    assert drawn(1, Sampling(temperature=1.0, top_k=1)) == drawn(1, Sampling(temperature=1.0, top_p=1e-6)) == greedy
    assert drawn(1, Sampling(temperature=1e-4)) == greedy != drawn(1, hot)


def test_all_tokens_may_be_drawn() -> None:
    """transformers would keep 50 where nothing is said, and so would a model that comes with a wish of its own."""
    trained = model(7).eval()
    trained.generation_config.top_k = 2
    torch.manual_seed(0)
    found = {write_on(trained, [1], 1, end=None, sampling=Sampling(temperature=50.0))[0] for _ in range(150)}
    assert len(found) > 80
