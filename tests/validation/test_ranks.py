"""Two processes find what one finds: samples that fill up the last batch do not count twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphing_trainer.validation.metrics import WORD_SAMPLES
from morphing_trainer.validation.names import METRICS
from tests.validation.program import evaluate

NAMES = ("loss", *METRICS)


@pytest.mark.parametrize(("data", "count", "batch"), [("prompted", 11, 4), ("packed", WORD_SAMPLES + 7, 8)])
def test_two_processes_are_as_one(tmp_path: Path, data: str, count: int, batch: int) -> None:
    """The last batch has 3 or 7 samples and a repetition. Words are counted in the same samples, not in all of them."""
    asked = {"eval_metrics": list(METRICS), "eval_example": True, "eval_example_tokens": 4}
    single = evaluate(tmp_path / "single", data, count, per_device_eval_batch_size=batch, **asked)
    pair = evaluate(tmp_path / "pair", data, count, processes=2, per_device_eval_batch_size=batch // 2, **asked)
    assert [found.pop() for found in (*single, *pair)] == [1, 1, 0], "only the main process makes an example"
    assert [line["step"] for line in pair[0]] == [1, 1, 2]
    for one, left, right in zip(*single, *pair, strict=True):
        for name in NAMES:
            assert left[f"eval_{name}"] == right[f"eval_{name}"]
            assert left[f"eval_{name}"] == pytest.approx(one[f"eval_{name}"], rel=1e-5)
        assert one["eval_token_accuracy"] > 0.2
    log = (tmp_path / "pair" / "0.log").read_text()
    examples = [line for line in log.splitlines() if "example, " in line]
    assert len(examples) == 3, "prompt, truth and prediction of the evaluation that is not a mere repetition"
    assert "example, " not in (tmp_path / "pair" / "1.log").read_text()
    assert examples == [
        line for line in (tmp_path / "single" / "0.log").read_text().splitlines() if "example, " in line
    ]
