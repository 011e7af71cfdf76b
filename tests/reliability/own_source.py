"""What our own source must not do with what it reads: a checker over syntax trees.

A finding is a line of code and the reason. The checker knows names, not values: what is imported under another name is
followed (`import yaml as y`, `from os import system as s`), what is looked up at run time is not, so looking up by name
on modules that could run things is forbidden too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One forbidden thing.

    Attributes:
        line: where, from 1.
        what: its dotted name, or what it is.
        why: what is wrong with it.
    """

    line: int
    what: str
    why: str


_RUNS = "runs text as code"
_PICKLES = "unpickling runs what the file says"
_SHELL = "gives text to a shell"

FORBIDDEN_CALLS = {
    **dict.fromkeys(("eval", "exec", "compile", "execfile"), _RUNS),
    **dict.fromkeys((f"builtins.{name}" for name in ("eval", "exec", "compile")), _RUNS),
    **dict.fromkeys(("code.interact", "runpy.run_path", "runpy.run_module", "timeit.timeit"), _RUNS),
    **dict.fromkeys(("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"), _SHELL),
    **dict.fromkeys(
        (
            "yaml.load",
            "yaml.load_all",
            "yaml.full_load",
            "yaml.full_load_all",
            "yaml.unsafe_load",
            "yaml.unsafe_load_all",
        ),
        "makes objects of tags; use morphing_trainer.documents",
    ),
    **dict.fromkeys(("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.package.PackageImporter"), _RUNS),
    **dict.fromkeys(("torch.jit.load", "torch.export.load", "torch._export.load"), "runs the program in the file"),
    "torch.serialization.add_safe_globals": "weakens weights_only for the whole process",
    "numpy.fromregex": "compiles text of a file",
}
"""Dotted names -> why they must not be called."""

FORBIDDEN_IMPORTS = {
    **dict.fromkeys(("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), _PICKLES),
    **dict.fromkeys(("jsonpickle", "pandas"), _PICKLES),
    **dict.fromkeys(("code", "codeop", "runpy", "imp"), _RUNS),
}
FORBIDDEN_NAMES = {
    **dict.fromkeys(("UnsafeLoader", "FullLoader", "CLoader", "CFullLoader", "CUnsafeLoader"), "makes objects of tags"),
    **dict.fromkeys(("Pickler", "Unpickler", "read_pickle", "load_module", "PackageImporter"), _PICKLES),
    **dict.fromkeys(("FileSystemReader",), "torch reads its .metadata by pickle"),
    "register_for_checkpointing": "accelerate loads it with weights_only=False",
    "__reduce__": _PICKLES,
    "__reduce_ex__": _PICKLES,
}
"""Names that nothing may have, wherever they come from."""

REQUIRED = {
    "torch.load": ("weights_only", True, _PICKLES),
    "numpy.load": ("allow_pickle", False, _PICKLES),
    "numpy.lib.npyio.NpzFile": ("allow_pickle", False, _PICKLES),
    "numpy.lib.format.read_array": ("allow_pickle", False, _PICKLES),
}
"""Calls that must say this of themselves."""

FORBIDDEN_OPTIONS = {
    "shell": (True, _SHELL),
    "trust_remote_code": (True, "runs code of a repository"),
    "weights_only": (False, _PICKLES),
    "allow_pickle": (True, _PICKLES),
    "code_revision": (None, "says which code of a repository to run"),
}
"""Keyword -> the only value that it must not have; anything that is not a literal is refused as well."""

DYNAMIC = ("importlib.import_module", "importlib.__import__", "__import__", "import_module")


def findings(source: str) -> list[Finding]:
    """Everything forbidden in one file."""
    tree = ast.parse(source)
    return sorted(_Checker(tree).found(), key=lambda finding: finding.line)


class _Checker:
    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._names: dict[str, str] = {}
        self._modules: set[str] = set()
        """Modules that are imported as such."""
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._names[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
                    self._modules.add(alias.name.partition(".")[0])
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    self._names[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def found(self) -> Iterator[Finding]:
        for node in ast.walk(self._tree):
            match node:
                case ast.Import() | ast.ImportFrom():
                    yield from self._imports(node)
                case ast.Call():
                    yield from self._call(node)
                case ast.Attribute(attr=name) | ast.Name(id=name) if name in FORBIDDEN_NAMES:
                    yield Finding(node.lineno, name, FORBIDDEN_NAMES[name])
                case ast.FunctionDef(name=name) if name in FORBIDDEN_NAMES:
                    yield Finding(node.lineno, name, FORBIDDEN_NAMES[name])
            yield from self._mentioned(node)

    def _imports(self, node: ast.Import | ast.ImportFrom) -> Iterator[Finding]:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for module in modules:
            top = module.partition(".")[0]
            if top in FORBIDDEN_IMPORTS and not (isinstance(node, ast.ImportFrom) and node.level):
                yield Finding(node.lineno, f"import {module}", FORBIDDEN_IMPORTS[top])
        for alias in node.names:
            if alias.name in FORBIDDEN_NAMES:
                yield Finding(node.lineno, alias.name, FORBIDDEN_NAMES[alias.name])

    def _mentioned(self, node: ast.AST) -> Iterator[Finding]:
        """A forbidden function that is handed on instead of called: `map(eval, lines)`."""
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            name = self._dotted(node)
            if name in FORBIDDEN_CALLS and name != "compile":
                yield Finding(node.lineno, name, FORBIDDEN_CALLS[name])

    def _call(self, node: ast.Call) -> Iterator[Finding]:
        name = self._dotted(node.func)
        if name == "compile":  # `re.compile` and methods have dotted names
            yield Finding(node.lineno, name, FORBIDDEN_CALLS[name])
        if name.startswith("os.") and name.removeprefix("os.").startswith(("exec", "spawn", "posix_spawn")):
            yield Finding(node.lineno, name, "starts another program in an uncommon way")
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in REQUIRED:
            option, value, why = REQUIRED[name]
            said = given.get(option)
            if not (isinstance(said, ast.Constant) and said.value is value):
                yield Finding(node.lineno, f"{name} without {option}={value}", why)
        for option, (value, why) in FORBIDDEN_OPTIONS.items():
            said = given.get(option)
            if said is not None and not (isinstance(said, ast.Constant) and said.value is not value):
                yield Finding(node.lineno, f"{option}={ast.unparse(said)}", why)
        if name in DYNAMIC and not (node.args and isinstance(node.args[0], ast.Constant)):
            yield Finding(node.lineno, f"{name}({ast.unparse(node.args[0]) if node.args else ''})", "imports by a name")
        yield from self._looked_up(node, name)

    def _looked_up(self, node: ast.Call, name: str) -> Iterator[Finding]:
        """By a name that is no literal: a function that is called at once, or anything of a module."""
        called = node.func
        looked_up = isinstance(called, ast.Call) and self._dotted(called.func) in ("getattr", "operator.methodcaller")
        if looked_up and len(called.args) > 1 and not isinstance(called.args[1], ast.Constant):
            yield Finding(node.lineno, ast.unparse(called), "calls by a name")
        if name == "getattr" and len(node.args) > 1 and not isinstance(node.args[1], ast.Constant):
            of = node.args[0]
            root = self._dotted(of).partition(".")[0]
            if (isinstance(of, ast.Call) and self._dotted(of.func) in DYNAMIC) or root in self._modules:
                yield Finding(node.lineno, ast.unparse(node), "looks up by a name in a module")
        if name in ("globals", "vars", "locals") and not node.args and name != "vars":
            yield Finding(node.lineno, f"{name}()", "looks up by a name in a module")

    def _dotted(self, node: ast.expr) -> str:
        """`np.load` as `numpy.load`; "" for what has no name."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join([self._names.get(node.id, node.id), *reversed(parts)])
