"""What a wheel installs: all that the package holds, and nothing else, working away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "morphing_trainer"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a wheel and an sdist, built from a copy of the sources."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    shutil.copytree(PACKAGE, source / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return place


def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


def test_a_wheel_holds_the_package_and_no_more(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert inside == {path.relative_to(ROOT).as_posix() for path in files}


def test_a_source_distribution_holds_what_a_wheel_is_made_of(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "morphing_trainer/py.typed"} <= inside
    assert {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")} <= inside


def test_what_a_wheel_says_of_itself(built: Path) -> None:
    with zipfile.ZipFile(wheel(built)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(archive.read(name).decode())
    assert (told["Name"], told["License"], told["License-File"]) == ("morphing-trainer", "MIT", "LICENSE")
    assert told["Description-Content-Type"] == "text/markdown"
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {told['Version']} " in changes
    assert f"version: {told['Version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_an_installed_wheel_works(built: Path, tmp_path: Path) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*pip, str(wheel(built))], check=True, timeout=120)
    program = (
        "import morphing_trainer, sys\n"
        f"assert morphing_trainer.__file__.startswith({str(place)!r}), morphing_trainer.__file__\n"
        "from morphing_trainer.cli.morph import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "a.yaml").write_text("- {name: stack_layers, value: 2, max_wait_iters: 5}\n")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}\n')
    plan = ["plan", "a.yaml", "--model", "tiny", "--max_steps", "20", "--block_size", "16"]
    for words in (["ops", "stack_layers"], ["validate", "a.yaml"], ["schema"], plan):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
