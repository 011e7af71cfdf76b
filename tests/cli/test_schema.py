"""`morph schema`: the schemas on standard output, or in a file that is not there yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from morphing_trainer.cli import morph
from morphing_trainer.schemas.building import schema_text


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert morph.main(["schema"]) == 0
    assert capsys.readouterr().out == schema_text("schedule")
    path = tmp_path / "plan.schema.json"
    assert morph.main(["schema", "--for", "plan", "-o", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == schema_text("plan")
    assert capsys.readouterr().out == ""
    assert morph.main(["schema", "-o", str(path)]) == 2
    assert "says something else; give --overwrite" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == schema_text("plan")
    assert morph.main(["schema", "-o", str(path), "--overwrite"]) == 0
    assert path.read_text(encoding="utf-8") == schema_text("schedule")
    for place in (tmp_path, tmp_path / "nowhere" / "x.json", Path("x" * 300)):
        assert morph.main(["schema", "-o", str(place)]) == 2
        assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        morph.main(["schema", "--for", "config"])
    assert error.value.code == 2
