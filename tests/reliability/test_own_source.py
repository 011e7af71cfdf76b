"""Our own source runs nothing that it reads: no eval, exec, pickle, unsafe YAML or unguarded torch.load."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.own_source import findings

ROOT = Path(__file__).parents[2]
FOLDERS = ("morphing_trainer", "examples", "benchmarks")
FILES = sorted([ROOT / "train.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])

ALLOWED = {
    # Where names of the package live: by literal tables in the same file. Its subcommands: by that of cli/morph.py.
    ("morphing_trainer/__init__.py", "importlib.import_module(f'{__name__}.{_HOME[name]}')"),
    ("morphing_trainer/__init__.py", "getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)"),
    ("morphing_trainer/lineage/__init__.py", "importlib.import_module(f'{__name__}.{_HOME[name]}')"),
    ("morphing_trainer/lineage/__init__.py", "getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)"),
    ("morphing_trainer/cli/importing.py", "importlib.import_module(name)"),
    # Events of callbacks, named by our own code.
    ("morphing_trainer/callback.py", "getattr(callback, event)"),
    # Kinds of accelerators, by literal names.
    ("morphing_trainer/run/snapshot.py", "getattr(torch, kind, None)"),
    # Nothing but a `torch.dtype` is taken, which the next line sees to.
    ("morphing_trainer/sharding/files.py", "getattr(torch, str(kind).removeprefix('torch.'))"),
    # One of the five in `DTYPES`, checked the line before.
    ("morphing_trainer/models.py", "getattr(torch, dtype)"),
}
"""(file, what) that are as they should be."""

SNIPPETS = {
    "eval": "eval(text)",
    "exec": "exec(text)",
    "compile": "compile(text, 'f', 'exec')",
    "builtins.eval": "import builtins\nbuiltins.eval(text)",
    "from builtins": "from builtins import eval as e\ne(text)",
    "eval handed on": "list(map(eval, lines))",
    "eval kept": "run = eval",
    "pickle": "import pickle",
    "pickle as": "import pickle as p",
    "from pickle": "from pickle import loads",
    "pickle inside a function": "def f():\n    import pickle",
    "marshal": "import marshal",
    "shelve": "import shelve",
    "dill": "import dill",
    "dill's part": "import dill.source",
    "cloudpickle": "from cloudpickle import load",
    "joblib": "import joblib",
    "runpy": "import runpy",
    "unpickler of torch": "from torch._weights_only_unpickler import Unpickler",
    "reduce": "class A:\n    def __reduce__(self):\n        return A, ()",
    "yaml.load": "import yaml\nyaml.load(text)",
    "yaml.load with a safe loader": "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "yaml.unsafe_load": "import yaml\nyaml.unsafe_load(text)",
    "yaml.full_load": "import yaml\nyaml.full_load(text)",
    "yaml.load_all": "from yaml import load_all as every\nevery(text)",
    "unsafe loader": "import yaml\nyaml.parse(text, Loader=yaml.UnsafeLoader)",
    "full loader": "from yaml import FullLoader",
    "torch.load": "import torch\ntorch.load(path)",
    "torch.load, not only weights": "import torch\ntorch.load(path, weights_only=False)",
    "torch.load, perhaps": "import torch\ntorch.load(path, weights_only=flag)",
    "torch.load as": "from torch import load as read\nread(path)",
    "torch.jit.load": "import torch\ntorch.jit.load(path)",
    "torch.hub": "import torch\ntorch.hub.load('a/b', 'c')",
    "safe globals for all": "import torch\ntorch.serialization.add_safe_globals([A])",
    "distributed checkpoints by pickle": "from torch.distributed.checkpoint import FileSystemReader",
    "np.load": "import numpy as np\nnp.load(path)",
    "np.load with pickle": "import numpy as np\nnp.load(path, allow_pickle=True)",
    "numpy.load": "import numpy\nnumpy.load(path, mmap_mode='r')",
    "shell": "import subprocess\nsubprocess.run(command, shell=True)",
    "perhaps a shell": "import subprocess\nsubprocess.Popen(command, shell=flag)",
    "os.system": "import os\nos.system(command)",
    "os.system as": "from os import system as s\ns(command)",
    "os.popen": "import os\nos.popen(command)",
    "os.execv": "import os\nos.execv(path, [])",
    "getoutput": "import subprocess\nsubprocess.getoutput(command)",
    "trust_remote_code": "AutoModel.from_pretrained(name, trust_remote_code=True)",
    "trust_remote_code of a file": "AutoModel.from_pretrained(name, trust_remote_code=config['trust'])",
    "import by name": "import importlib\nimportlib.import_module(name)",
    "import by name as": "from importlib import import_module as load\nload(name)",
    "__import__": "__import__(name)",
    "call by name": "getattr(thing, name)(1)",
    "function of a module by name": "import os\nget = getattr(os, name)",
    "function of a part of a module by name": "import torch\nget = getattr(torch.nn, name)",
    "globals": "globals()[name](1)",
    "accelerate's own": "accelerator.register_for_checkpointing(thing)",
}
"""Every forbidden form."""

HARMLESS = """
import importlib, json, re, subprocess
import numpy as np
import torch
import yaml
model.eval()
model.compile()
torch.compile(model)
re.compile("a+")
pattern.compile()
torch.load(path, weights_only=True, mmap=True)
np.load(path, allow_pickle=False)
np.memmap(path, np.uint8, "r")
yaml.dump(data)
yaml.parse(text, Loader=yaml.SafeLoader)
json.load(file)
subprocess.run([program, name])
subprocess.run([program], shell=False)
AutoTokenizer.from_pretrained(name, trust_remote_code=False)
importlib.import_module("json")
getattr(options, name)
getattr(model, "config", None)
self.load(path)
load(path)
"""


def test_there_is_source_to_look_at() -> None:
    assert len(FILES) > 120
    assert {path.name for path in FILES} >= {"train.py", "trainer.py", "own_loop.py", "throughput.py"}


def test_nothing_that_is_read_is_run() -> None:
    found = [
        f"{name}:{finding.line}: {finding.what}: {finding.why}"
        for path in FILES
        for finding in findings(path.read_text("utf-8"))
        if ((name := path.relative_to(ROOT).as_posix()), finding.what) not in ALLOWED
    ]
    assert not found, "\n".join(found)


def test_every_exception_is_still_needed() -> None:
    seen = {
        (name, finding.what)
        for name in {name for name, _ in ALLOWED}
        for finding in findings((ROOT / name).read_text("utf-8"))
    }
    assert seen >= ALLOWED


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_checker_finds(name: str) -> None:
    source = f"before = 1\n{SNIPPETS[name]}\n"
    assert findings(source), source
    assert all(finding.line > 1 for finding in findings(source))
    inside = "def f():\n" + "\n".join(f"    {line}" for line in source.splitlines())
    assert len(findings(inside)) == len(findings(source))


def test_the_checker_leaves_alone_what_is_harmless() -> None:
    assert findings(HARMLESS) == []
