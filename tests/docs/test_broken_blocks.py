"""The negative control of `test_blocks`: what would not work for a reader is found, of every kind of block."""

from __future__ import annotations

from pathlib import Path

import pytest
from generation.blocks import BlockError, blocks_of

from tests.docs.running import BlockFault, Page
from tests.docs.workshop import opened

BROKEN = {
    "python: an assertion": ("```python\nassert 1 == 2\n```", "AssertionError"),
    "python: a name of another page": ("```python\nprint(undefined)\n```", "NameError"),
    "python: a change that changes nothing": ("<!-- run with: x -> y -->\n```python\nz = 1\n```", "'x' is not in"),
    "schedule: an unknown operation": ("```yaml\n- {name: stack_layer, value: 2, max_wait_iters: 1}\n```", "mean"),
    "schedule: a value out of range": ("```yaml\n- {name: change_lr, value: -1, max_wait_iters: 1}\n```", "positive"),
    "plan: no length": ("```yaml\nfirst: {dataset: demo}\n```", "epochs"),
    "config: an unknown option": ("```yaml\nlearning_rates: 1.0\n```", "learning_rate"),
    "json: a schedule without triggers": ('```json\n[{"name": "stack_layers", "value": 2}]\n```', "no trigger"),
    "yaml: not what the file says": (
        "<!-- same as: configs/schedules/thaw.yaml -->\n```yaml\n- {name: merge_lora_weights, max_wait_iters: 0}\n```",
        "is not what",
    ),
    "train: an unknown option": ("```sh\naccelerate launch train.py --learning_rat 1\n```", "no such option"),
    "train: a bad value": ("```sh\naccelerate launch train.py --max_steps many\n```", "whole number"),
    "train: a file that is not there": ("```sh\naccelerate launch train.py --train_file none.txt\n```", "none.txt"),
    "train: a schedule that is not there": (
        "```sh\nmorph train --scaling_schedule_file configs/schedules/none.yaml\n```",
        "no such file",
    ),
    "accelerate: a config that is not there": (
        "```sh\naccelerate launch --config_file accelerate_configs/none.yaml train.py --config configs/demo.yaml\n```",
        "none.yaml",
    ),
    "accelerate: an unknown option": ("```sh\naccelerate launch --gpus 2 train.py\n```", "no script|does not take"),
    "torchrun: a bad option": (
        "```sh\ntorchrun --nproc 2 train.py --config configs/demo.yaml\n```",
        "does not take|no",
    ),
    "morph: an unknown command": ("```sh\nmorph plans\n```", "exit code 2"),
    "morph: an unknown option": ("```sh\nmorph status runs/demo --fast\n```", "exit code 2"),
    "morph: a run that is not there": ("```sh\nmorph status runs/none\n```", "exit code 2"),
    "morph: an option of what is only parsed": (
        "```sh\nmorph data prepare --dataset_name wikitext --ouput data/x\n```",
        "output",
    ),
    "morph: another exit code": ("<!-- exit code: 1 -->\n```sh\nmorph status runs/demo\n```", "not 1"),
    "python -m: an unknown option": ("```sh\npython -m benchmarks.throughput --pair_count 1\n```", "does not take"),
    "python: a script that is not there": ("```sh\npython examples/none.py\n```", "no script"),
    "make: an unknown target": ("```sh\nmake everything\n```", "knows no everything"),
    "make: a bad argument of the demo": ('```sh\nmake demo DEMO_ARGS="--max_step 1"\n```', "no such option"),
    "pytest: a file that is not there": ("```sh\npytest tests/test_none.py\n```", "test_none.py"),
    "shell: an unknown command": ("```sh\nfrobnicate now\n```", "not known"),
    "shell: a pipe": ("```sh\nmorph ops | head\n```", "one command a line"),
    "output: stale": ("```sh\nmorph validate configs/demo.yaml\n```\n\n<!-- output -->\n```text\nok\n```", "stale"),
    "no language": ("```\nx = 1\n```", "name one"),
    "not run without a reason": ("<!-- not run -->\n```python\n1\n```", "say why"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_block_is_found(name: str, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, expected = BROKEN[name]
    with opened(tmp_path, prepared), pytest.raises(BlockFault) as found:
        Page().run(blocks_of("page.md", text))
    assert str(found.value).startswith("page.md:")
    told = str(found.value) + capsys.readouterr().err
    assert any(word in told for word in expected.split("|")), told


def test_good_blocks_pass_and_are_counted(tmp_path: Path, prepared: Path) -> None:
    text = """
```python
x = 1
```

<!-- saved as: mine.yaml -->
```yaml
- {name: stack_layers, value: 2, max_wait_iters: 1}
```

<!-- saved as: part.py -->
```python
y = x + 1
```

```sh
morph validate mine.yaml  # saved above
accelerate launch train.py --config configs/demo.yaml --scaling_schedule_file mine.yaml
morph data prepare --dataset_name wikitext --output data/x
morph data inspect data/x
```

```python
from part import __name__ as name
assert (y, name) == (2, "part")
```
"""
    page = Page()
    # Imported, the block is a module of its own, and knows no x.
    with opened(tmp_path, prepared), pytest.raises(BlockFault, match=r"page.md:23: NameError: name 'x'"):
        page.run(blocks_of("page.md", text))
    assert page.counts == {"python": 2, "yaml": 1, "command, run": 1, "command, parsed": 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("```sh\nmorph ops\n", "not closed"),
        ("<!-- runs with: x -->\n```sh\nmorph ops\n```", "is no mark"),
        ("<!-- not run: why -->\nText between.\n```sh\nmorph ops\n```", "before no block"),
        ("<!-- output -->\n", "before no block"),
    ],
)
def test_marks_that_would_be_passed_over_are_errors(text: str, told: str) -> None:
    with pytest.raises(BlockError, match=told):
        blocks_of("page.md", text)


def test_comments_around_what_is_filled_in_are_no_marks() -> None:
    text = "<!-- table: x -->\n| a |\n<!-- end of table -->\n<!-- growth: small best -->\nText.\n<!-- end -->\n"
    (block,) = blocks_of("page.md", f"{text}```sh\nmorph ops\n```")
    assert block.marks == {}
