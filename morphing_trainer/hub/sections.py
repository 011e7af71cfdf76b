"""The sections of a model card, each a list of Markdown lines; empty where nothing is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from morphing_trainer.hub.markdown import code, plain, table
from morphing_trainer.hub.told import Told
from morphing_trainer.reporting.adapters import adapters_text
from morphing_trainer.reporting.console import count, duration, loss_text, rate_text
from morphing_trainer.run.salvage import number

METRICS = {
    "eval_loss": ("loss", "Loss"),
    "eval_perplexity": ("perplexity", "Perplexity"),
    "eval_token_accuracy": ("accuracy", "Token accuracy"),
    "eval_word_accuracy": ("accuracy", "Word accuracy"),
}
"""Key of a log line -> the Hub's name of the metric, and a person's."""


def summary(told: Told) -> str:
    """Two or three sentences: what it is, where it comes from, how far it is."""
    facts = _config(told)
    what = f"A GPT-2 language model with {count(told.model.parameters)} parameters ({facts['layers']} layers, width "
    what += f"{facts['hidden']})"
    if told.model.modules:
        what += f": a base model and LoRA adapters ({adapters_text(_adapters(told))}) that belong to it"
    said = [f"{what}."]
    applied = [change for change in told.changes if change.undone is None]
    begin = f"[{told.base}](https://huggingface.co/{told.base})" if told.base else "a new model"
    if told.from_folder:
        begin = "a model from a local folder"
    if applied:
        start = applied[0].record.before
        size = f" with {count(start['parameters'])} parameters" if start.get("parameters") else ""
        shape = f" ({start['layers']} layers, width {start['hidden']})" if {"layers", "hidden"} <= set(start) else ""
        many = "1 operation" if len(applied) == 1 else f"{len(applied)} operations"
        said.append(f"It began as {begin}{size}{shape}, and {many} changed it while it was being trained,")
        said.append("with `morphing_trainer`.")
    elif told.began or told.base:
        said.append(f"It began as {begin} of this shape, and was trained with `morphing_trainer`.")
    if told.step and told.finished:
        tokens = f" on {count(told.tokens)} tokens" if told.tokens else ""
        said.append(f"The training took {told.step:,} steps{tokens}.")
    elif told.step:
        of = f" of {told.end:,}" if told.end else ""
        said.append(f"**This is a state in the middle of training, after step {told.step:,}{of}.**")
    return " ".join(said)


def loading(told: Told, repo: str) -> list[str]:
    """How to load and use it."""
    install = "pip install transformers torch" + (" peft" if told.model.modules else "")
    note = "It is a plain GPT-2: no other code is needed, and none is run."
    if told.model.modules:
        note = (
            "`transformers` finds the adapters beside the base model and puts them on by itself, if `peft` is "
            "installed. Other weights than those beside them are not their base: it was trained, too."
        )
    names, own = "AutoModelForCausalLM", []
    if told.model.tokenizer:
        names += ", AutoTokenizer"
        own = [
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            "",
            'inputs = tokenizer("Once upon a time", return_tensors="pt")',
            "tokens = model.generate(**inputs, max_new_tokens=50, do_sample=True, top_k=50)",
            "print(tokenizer.decode(tokens[0]))",
        ]
    else:
        note += " No tokenizer was saved with it."
    lines = [f"from transformers import {names}", "", f'model = AutoModelForCausalLM.from_pretrained("{repo}")', *own]
    return ["```bash", install, "```", "", "```python", *lines, "```", "", note]


def figures(told: Told) -> list[str]:
    rows = []
    evaluated = told.evaluations
    if evaluated:
        last = evaluated[-1]
        sound = [line for line in evaluated if math.isfinite(number(line.get("eval_loss")) or math.nan)]
        best = min(sound, key=lambda line: float(line["eval_loss"]), default=None)
        for key, (_, name) in METRICS.items():
            value = number(last.get(key))
            if value is None:
                continue
            text = f"{value:.1%}" if "accuracy" in key else loss_text(value)
            if key == "eval_loss" and best is not None and best is not last:
                text += f" (best: {loss_text(number(best['eval_loss']))} at step {int(best['step']):,})"
            rows.append((f"{name} on the evaluation set", text))
    losses = [value for line in told.lines if (value := number(line.get("loss"))) is not None]
    if losses:
        rows.append(("Training loss, last logged", loss_text(losses[-1])))
    if told.tokens:
        each = f" ({told.tokens / told.model.parameters:.1f} per parameter)" if told.model.parameters else ""
        rows.append(("Tokens seen", f"{count(told.tokens)}{each}"))
    if told.step:
        epochs = f", {told.epoch:.2f} epochs" if told.epoch else ""
        rows.append(("Optimizer steps", f"{told.step:,}{epochs}"))
    if told.seconds:
        rows.append(("Training time", duration(told.seconds)))
    return ["## Figures", "", *table(("figure", "value"), rows)] if rows else []


def shape(told: Told) -> list[str]:
    facts = _config(told)
    rows = [
        ("Layers", str(facts["layers"])),
        ("Width", f"{facts['hidden']} ({facts['heads']} heads)"),
        ("Width of the MLP", str(facts["mlp"])),
        ("Vocabulary", f"{facts['vocabulary']:,}" if isinstance(facts["vocabulary"], int) else "-"),
        ("Longest text", f"{facts['positions']:,} tokens" if isinstance(facts["positions"], int) else "-"),
        ("Parameters", f"{told.model.parameters:,}"),
    ]
    if told.model.modules:
        rows.append(("LoRA", adapters_text(_adapters(told))))
    if facts["dtype"]:
        rows.append(("Weights in", plain(facts["dtype"])))
    return ["## Final shape", "", *table(("part", "value"), rows)]


def data(told: Told) -> list[str]:
    if not told.data:
        return []
    lines = []
    for source in told.data:
        name = plain(source.name)
        if source.on_hub:
            name = f"[{source.name}](https://huggingface.co/datasets/{source.name})"
        stage = f"Stage {plain(source.stage)}: " if source.stage else ""
        config = f", configuration {code(source.config)}" if source.config else ""
        lines.append(f"- {stage}{name}{config}")
    return ["## Data", "", *lines]


def training(told: Told) -> list[str]:
    rows: list[tuple[str, str]] = []
    settings = told.began.get("settings")
    training = told.arguments.get("training", {})
    if isinstance(settings, Mapping):
        after = told.changes[-1].record.after if told.changes else {}
        ends = {**settings, **{name: after[name] for name in settings if name in after}}
        rows.append(("Learning rate", _both(settings, ends, "learning_rate", rate_text)))
        rows.append(("Batch per device", _both(settings, ends, "batch_size", str)))
        for name, label, dull in (("grad_accum", "Gradient accumulation", 1), ("warmup_steps", "Warm-up steps", 0)):
            if {settings.get(name, dull), ends.get(name, dull)} != {dull}:
                rows.append((label, _both(settings, ends, name, str)))
    for name, label in (("optimizer", "Optimizer"), ("lr_scheduler_type", "Learning-rate schedule")):
        if training.get(name):
            rows.append((label, code(training[name])))
    if training.get("weight_decay"):
        rows.append(("Weight decay", plain(training["weight_decay"])))
    if told.began.get("seed") is not None:
        rows.append(("Seed", plain(told.began["seed"])))
    named = ("morphing-trainer", "torch", "transformers", "peft")
    versions = [f"{name} {told.versions[name]}" for name in named if told.versions.get(name)]
    if versions:
        rows.append(("Versions", plain(", ".join(versions))))
    return ["## Training", "", *table(("setting", "value"), rows)] if rows else []


def _both(first: Mapping[str, Any], last: Mapping[str, Any], name: str, write: Any) -> str:
    before, after = plain(write(first.get(name))), plain(write(last.get(name)))
    return before if before == after else f"{before} at first, {after} in the end"


def files(told: Told) -> list[str]:
    if not told.began:
        return []
    lines = ["- `journal.jsonl`: every event of the run, a line of JSON each"]
    if told.began.get("schedule"):
        lines.append("- `schedule.yaml`: the operations that it was to make, for `--scaling_schedule_file`")
    return ["## Files beside the model", "", *lines]


def _config(told: Told) -> dict[str, Any]:
    config = told.model.config
    hidden = config.get("n_embd")
    return {
        "layers": config.get("n_layer"),
        "hidden": hidden,
        "heads": config.get("n_head"),
        "mlp": config.get("n_inner") or (4 * hidden if isinstance(hidden, int) else "-"),
        "vocabulary": config.get("vocab_size"),
        "positions": config.get("n_positions"),
        "dtype": config.get("dtype") or config.get("torch_dtype"),
    }


def _adapters(told: Told) -> dict[str, int]:
    return {"lora_rank": told.model.rank, "lora_modules": told.model.modules}
