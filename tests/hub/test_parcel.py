"""What goes to the Hub and what does not: files by their names, no places of a machine, no tokens."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import save

from morphing_trainer.hub.parcel import Parcel, is_model_file, model_files, run_files
from morphing_trainer.hub.privacy import anonymous, anonymous_lines
from morphing_trainer.hub.sending import same_run
from morphing_trainer.hub.told import schedule_of


def test_places_and_tokens_do_not_leave_the_machine(tmp_path: Path) -> None:
    for text, left in {
        "saved in /home/bob/runs/a/checkpoint-5; go on": "saved in checkpoint-5; go on",
        "of /home/bob": "of <path>",
        "~/models/base": "<path>",
        "C:\\Users\\bob\\runs\\a is full": "a is full",
        "token hf_abcDEF123456 given": "token <token> given",
        "3/4 at https://huggingface.co/a/b, runs/demo/model": "3/4 at https://huggingface.co/a/b, runs/demo/model",
        "tokens/s and/or 1.5/2": "tokens/s and/or 1.5/2",
    }.items():
        assert anonymous(text) == left
    assert anonymous("in /srv/my runs/of bob/x", [Path("/srv/my runs/of bob")]) == "in x"
    line = b'{"event": "failed", "step": 3, "error": "[Errno 28] /home/bob/x/run: no space"}\n'
    plain = b'{"event":  "end", "step": 4}\n'
    found = anonymous_lines(line + b"{broken\n" + plain)
    assert b"bob" not in found and found.endswith(plain) and json.loads(found.splitlines()[0])["step"] == 3


def test_only_a_models_own_files_go(tmp_path: Path) -> None:
    names = ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "adapter_config.json"]
    others = ["training_args.bin", "optimizer.pt", "rng_state.pth", ".env", "notes.txt", "modeling.py", "a/config.json"]
    assert all(map(is_model_file, names)) and not any(map(is_model_file, others))
    model = tmp_path / "model"
    model.mkdir()
    for name in (*names, *others[:-1]):
        (model / name).write_bytes(save({}) if name.endswith(".safetensors") else b"{}")
    (model / "config.json").write_text(json.dumps({"_name_or_path": "/home/bob/m", "n_layer": 2}))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/bob/m", "r": 2}))
    files = model_files(model, "me/x")
    assert set(files) == {*names, "config.json"}
    assert files["config.json"] == b'{\n  "n_layer": 2\n}\n'
    assert files["adapter_config.json"] == b'{\n  "base_model_name_or_path": "me/x",\n  "r": 2\n}\n'
    parcel = Parcel(files, None, ("last-checkpoint/",))
    there = [
        "adapter_model.safetensors",
        "config.json",
        "last-checkpoint/x",
        "notes.md",
        "checkpoint-4/x",
        "schedule.yaml",
    ]
    assert parcel.stale(there) == ["adapter_model.safetensors", "last-checkpoint/x", "schedule.yaml"]
    assert list(run_files(tmp_path, b"", [])) == []


def test_the_schedule_that_was_followed_and_whose_journal_it_is() -> None:
    one, two, three = ({"name": name} for name in ("stack_layers", "widen_mlp", "set_lr"))
    start = {"event": "start", "step": 0, "time": "t", "seed": 1, "schedule": [one, two]}
    done = {"event": "operation", "step": 3, "index": 0, "entry": one}
    changed = {"event": "override", "step": 3, "name": "schedule", "before": [two], "now": [three]}
    assert schedule_of([start, done]) == [one, two]
    assert schedule_of([start, done, changed]) == [one, three]
    assert same_run(start, dict(start)) and same_run(None, None)
    assert not same_run(start, {**start, "time": "u"}) and not same_run(start, None)
