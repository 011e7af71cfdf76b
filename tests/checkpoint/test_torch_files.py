from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from morphing_trainer.checkpoint.torch_files import read_torch_file


def test_several_threads_may_read_at_once(tmp_path: Path) -> None:
    """Random states hold numpy's arrays; what torch may make of a file is allowed to all threads together."""
    path = tmp_path / "rng_state.pth"
    torch.save({"numpy": np.random.RandomState(0).get_state(), "cpu": torch.get_rng_state()}, path)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(read_torch_file, [path] * 200):
            assert torch.equal(found["cpu"], torch.get_rng_state())
