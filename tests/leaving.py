"""train.py, but that it fails if threads of a process group are still there when the run is over.

Such threads may touch Python objects while the interpreter ends, which aborts the process: rarely, and after its work.
"""

import os
import sys
from pathlib import Path

from morphing_trainer.cli.train import main


def group_threads() -> list[str]:
    """Names of this process's threads that belong to gloo; none where there is no /proc."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    code = main()
    if left := group_threads():
        print(f"rank {os.environ['RANK']} leaves with {left}", file=sys.stderr)
        code = 1
    sys.exit(code)
