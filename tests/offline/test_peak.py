"""Memory holds what one tensor needs, however many there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from morphing_trainer.lora import save_model
from morphing_trainer.offline.tensor_files import TensorFile, write_tensors
from tests.support import tiny_model

MEASURED = """
import sys
from pathlib import Path
from morphing_trainer.functional import parsed
from morphing_trainer.memory.peak import process_peak
from morphing_trainer.offline.applying import apply
from morphing_trainer.offline.source import open_source
from tests.offline.common import grown_live

folder, out, way = sys.argv[1:]
operations = [{"name": "widen_mlp", "value": 2}, {"name": "stack_layers", "value": 2}]
tiny = Path(folder).with_name("tiny")
apply(open_source(str(tiny)), [parsed(one) for one in operations], Path(out + "-tiny"), check=False)  # warm up
Path("/proc/self/clear_refs").write_text("5")
before = process_peak()
if way == "on disk":
    apply(open_source(folder), [parsed(one) for one in operations], Path(out), check=False)
else:
    grown_live(Path(folder), Path(out), *operations)
print(process_peak() - before)
"""

MB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be measured on Linux only")
def test_the_peak_is_a_few_times_the_largest_tensor_and_not_the_model(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "tiny")
    model = tiny_model(n_layer=12, n_embd=256, vocab_size=8_000)
    save_model(model, tmp_path / "in")
    largest = max(parameter.numel() * 4 for parameter in model.parameters())
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def peak(way: str) -> int:
        command = [sys.executable, "-c", MEASURED, str(tmp_path / "in"), str(tmp_path / way), way]
        done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[-1])

    limit = 3 * largest + 12 * MB
    written = (tmp_path / "in/model.safetensors").stat().st_size
    found, usual = peak("on disk"), peak("live")
    assert found < limit
    assert usual > written > limit, (found, usual, written)  # so the limit means something


def test_a_file_that_is_written_is_one_that_the_library_reads(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.float16, torch.float32, torch.bfloat16, torch.float64]
    tensors = {
        f"name {number} \u00e9": torch.randn(shape, generator=generator).to(kinds[number % 4])
        for number, shape in enumerate([(3,), (2, 5), (), (0, 4), (7, 1), (1, 2, 3), (5,), (4, 4)])
    }
    path = tmp_path / "tensors.safetensors"
    write_tensors(path, {name: (each.dtype, each.shape) for name, each in tensors.items()}, tensors.__getitem__)
    file = TensorFile(path)
    with safe_open(path, "pt") as read:
        assert read.metadata() == {"format": "pt"}
        assert {*read.keys()} == tensors.keys() == file.slots.keys()
        for name, tensor in tensors.items():
            for found in (read.get_tensor(name), file.read(name)):
                assert found.dtype == tensor.dtype and torch.equal(found, tensor), name
            assert file.slots[name].start % tensor.dtype.itemsize == 0
    with pytest.raises(FileExistsError):
        write_tensors(path, {}, tensors.__getitem__)
