"""`morph sample` as a user meets it, with models that a run has saved."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from morphing_trainer import LoraArguments, add_adapters, save_model
from morphing_trainer.cli.morph import main
from morphing_trainer.cli.sample import printable
from morphing_trainer.models import load_model
from tests.support import stirred
from tests.validation.common import LONGEST, TEXT, Packed, made, model, tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: `model/`, and a checkpoint from half way."""
    folder = tmp_path_factory.mktemp("runs") / "taught"
    trainer = made(
        folder, Packed(), max_steps=40, save_strategy="steps", save_steps=20, eval_strategy="no", eval_steps=None
    )
    trainer.train()
    trainer.save_whole(folder / "model")
    return folder


Captured = pytest.CaptureFixture[str]


def sample(capsys: Captured, *arguments: object) -> tuple[str, str]:
    """Standard output and error of a run of the command that succeeds."""
    assert main(["sample", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def records(capsys: Captured, *arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sample(capsys, *arguments, "--json")[0].splitlines()]


def test_writes_what_generate_writes(run: Path, capsys: Captured) -> None:
    """Greedy, from a text: the same as a plain use of transformers."""
    prompt = "The loss is"
    out, err = sample(capsys, run, "--prompt", prompt, "--temperature", 0, "--max_new_tokens", 12)
    ids = torch.tensor([tokenizer()(prompt)["input_ids"]])
    trained: Any = load_model(str(run / "model"))
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)
    expected = trained.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0]
    assert out == tokenizer().decode(expected, skip_special_tokens=True) + "\n"
    assert err == f"# model {run / 'model'}, cpu\n"


def test_same_seed_same_text(run: Path, capsys: Captured) -> None:
    options = (run, "--prompt", "It learns", "--max_new_tokens", 30, "--seed")
    first, second, third = (sample(capsys, *options, seed)[0] for seed in (1, 1, 2))
    assert first == second != third
    assert first.startswith("It learns")
    state = torch.get_rng_state()
    drawn = sample(capsys, *options[:-1])
    assert torch.equal(torch.get_rng_state(), state)
    seed = drawn[1].rsplit(" ", 1)[1]
    assert sample(capsys, *options, int(seed))[0] == drawn[0], "a seed that was drawn is told"


def test_several_texts(run: Path, capsys: Captured) -> None:
    """One after the other; each is the one that its seed gives alone."""
    options = (run, "--max_new_tokens", 10, "--prompt", "A model")
    together = sample(capsys, *options, "--num_samples", 3, "--seed", 5)[0]
    alone = [sample(capsys, *options, "--seed", seed)[0] for seed in (5, 6, 7)]
    assert together == "".join(f"--- text {i} of 3, seed {4 + i} ---\n{text}" for i, text in enumerate(alone, 1))
    found = records(capsys, *options, "--num_samples", 3, "--seed", 5)
    assert ["A model" + printable(record["text"]) + "\n" for record in found] == alone


def test_json(run: Path, capsys: Captured) -> None:
    (record,) = records(capsys, run, "--prompt", "Words", "--max_new_tokens", 9, "--seed", 3)
    text = record.pop("text")
    ended = record.pop("ended")
    tokens = record.pop("tokens")
    assert record == {"model": str(run / "model"), "prompt": "Words", "seed": 3}
    assert isinstance(text, str) and (ended or tokens == 9)
    (greedy,) = records(capsys, run, "--temperature", 0, "--max_new_tokens", 2)
    assert greedy["seed"] is None and greedy["prompt"] == ""


def test_prompts_from_a_file_and_standard_input(
    run: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Words are\nwhat\n")
    options = ("--max_new_tokens", 5, "--seed", 1)
    from_file = sample(capsys, run, "--prompt", f"FILE:{path}", *options)[0]
    assert from_file.startswith("Words are\nwhat")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Words are\nwhat\r\n")))
    assert sample(capsys, run, "--prompt", "-", *options)[0] == from_file
    assert sample(capsys, run, "--prompt", "Words are\nwhat", *options)[0] == from_file


def test_an_empty_prompt_begins_a_new_text(run: Path, capsys: Captured) -> None:
    from_nothing = records(capsys, run, "--temperature", 0, "--max_new_tokens", 5)[0]["text"]
    from_the_sign = records(capsys, run, "--temperature", 0, "--max_new_tokens", 5, "--prompt", "<|endoftext|>")
    assert from_nothing == from_the_sign[0]["text"] != ""


def test_long_prompts_and_long_texts(run: Path, capsys: Captured) -> None:
    """Of a prompt the end counts, and a text may be longer than what the model reads at once."""
    long = "\n".join(TEXT)
    out, err = sample(capsys, run, "--prompt", long, "--temperature", 0, "--max_new_tokens", 4 * LONGEST)
    tokens = tokenizer()(long)["input_ids"]
    said = f"the prompt has {len(tokens)} tokens, the model reads {LONGEST}: only the last {LONGEST - 1} count"
    assert said in err
    assert out.startswith(long)
    end = tokenizer().decode(tokens[-(LONGEST - 1) :])
    same = records(capsys, run, "--prompt", end, "--temperature", 0, "--max_new_tokens", 4 * LONGEST)[0]
    assert out == long + same["text"] + "\n"
    assert same["tokens"] == 4 * LONGEST or same["ended"]


def test_checkpoints_and_folders(run: Path, capsys: Captured) -> None:
    checkpoint = run / "checkpoint-20"
    assert records(capsys, checkpoint, "--max_new_tokens", 1)[0]["model"] == str(checkpoint)
    half, whole = (
        records(capsys, source, "--prompt", "The", "--temperature", 0, "--max_new_tokens", 30)[0]["text"]
        for source in (checkpoint, run)
    )
    assert half != whole


def test_adapters_take_part(tmp_path: Path, capsys: Captured) -> None:
    """Saved beside their base model, as a checkpoint has them."""
    adapted = stirred(add_adapters(model(), LoraArguments(lora_r=2)), seed=4)
    adapted.eval()
    save_model(adapted, tmp_path / "beside", merge=False)
    save_model(adapted, tmp_path / "merged")
    for name in ("beside", "merged"):
        tokenizer().save_pretrained(tmp_path / name)
    model().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    options = ("--prompt", "It grows", "--temperature", 0, "--max_new_tokens", 20)
    texts = {name: records(capsys, tmp_path / name, *options)[0]["text"] for name in ("beside", "merged", "base")}
    assert texts["beside"] == texts["merged"] != texts["base"]


def fails(capsys: Captured, *arguments: object) -> str:
    assert main(["sample", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num_samples", "0"], "--num_samples: must be at least 1, is 0"),
        (["--max_new_tokens", "-5"], "--max_new_tokens: must be at least 1"),
        (["--temperature", "-1"], "--temperature: must be a number from 0"),
        (["--temperature", "nan"], "--temperature: must be a number from 0"),
        (["--temperature", "warm"], "--temperature: invalid float value: 'warm'"),
        (["--top_k", "0"], "--top_k: must be at least 1"),
        (["--top_p", "1.5"], "--top_p: must be above 0 and at most 1"),
        (["--top_p", "0"], "--top_p: must be above 0 and at most 1"),
        (["--seed", "-1"], "--seed: must be from 0"),
        (["--temperature", "0", "--top_k", "5"], "--top_k: has no effect at temperature 0"),
        (["--temperature", "0", "--num_samples", "2"], "--num_samples: at temperature 0 all texts are the same"),
        (["--promt", "x"], "--promt: no such option; did you mean '--prompt'?"),
        (["x"], "x: is one argument too many"),
        (["--prompt", "FILE:nowhere.txt"], "--prompt: nowhere.txt cannot be read: No such file"),
        (["--device", "abacus"], "--device: there is no device 'abacus'"),
    ],
)
def test_bad_options(run: Path, capsys: Captured, options: list[str], said: str) -> None:
    assert said in fails(capsys, run, *options)


def test_all_that_is_wrong_is_said_at_once(run: Path, capsys: Captured) -> None:
    assert len(fails(capsys, run, "--top_k", 0, "--top_p", 7, "--seed", -3).splitlines()) == 3


def test_no_model(run: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "arguments are required: MODEL" in fails(capsys)
    assert f"did you mean '{run}'" in fails(capsys, run.with_name("tought"))
    assert "holds no run, checkpoint or model" in fails(capsys, tmp_path)
    # Not a folder: perhaps one of the Hub, which cannot be reached here.
    assert "some/model" in fails(capsys, "some/model")


def test_no_tokenizer(tmp_path: Path, run: Path, capsys: Captured) -> None:
    model().save_pretrained(tmp_path)
    assert f"{tmp_path}: no tokenizer was saved with this model" in fails(capsys, tmp_path)
    assert records(capsys, tmp_path, "--tokenizer", run / "model", "--max_new_tokens", 3)[0]["tokens"] <= 3


def test_a_tokenizer_that_does_not_fit(tmp_path: Path, capsys: Captured) -> None:
    model(vocab_size=100).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "vocabulary has 100" in fails(capsys, tmp_path)


def test_text_that_is_not_utf8(run: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "latin.txt").write_bytes("Wörter".encode("latin-1"))
    assert "is not UTF-8 text (byte 1)" in fails(capsys, run, "--prompt", f"FILE:{tmp_path / 'latin.txt'}")


def test_control_characters_are_kept_from_the_terminal() -> None:
    assert printable("a\tb\nc\x1b[31md\x07\x9b1m\re") == "a\tb\nc[31md1me"


def test_help(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["sample", "--help"])
    assert leaving.value.code == 0
    assert "--top_p" in capsys.readouterr().out


ENDLESS = ["--max_new_tokens", "1000000", "--top_k", "300", "--temperature", "5"]


def test_streams_and_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    """Words come while more are being written; then the line is ended and the code is the conventional one."""
    endless = model()
    with torch.no_grad():  # never ends a text: the last hidden state is always all ones, and end-of-text far from it
        endless.transformer.ln_f.weight.zero_()
        endless.transformer.ln_f.bias.fill_(1.0)
        endless.transformer.wte.weight[0] = -10.0
    endless.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-m", "morphing_trainer.cli.morph", "sample", str(tmp_path), "--prompt", "It", *ENDLESS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path.cwd())
    assert process.stdout is not None
    seen = b""
    while len(seen) < 200:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, process.communicate()
        seen += piece
    assert process.poll() is None, "still writing"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.endswith(b"\n")
    assert b"Traceback" not in errors and errors.endswith(b"interrupted\n")
