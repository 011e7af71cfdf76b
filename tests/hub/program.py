"""What the processes of these tests do: train and push, push by command, load what is on the Hub."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback, default_data_collator

from morphing_trainer import LoraArguments, MorphingTrainer, add_adapters
from morphing_trainer.cli import morph
from morphing_trainer.errors import MorphError
from morphing_trainer.hub import sending
from morphing_trainer.layers import publishing
from morphing_trainer.models import load_model
from morphing_trainer.run.consensus import RankError
from tests.sharded import sharded
from tests.support import VOCAB, Tokens, arguments, losses, tiny_model, weights

END = {"hub_strategy": "end", "save_strategy": "no", "max_steps": 5}
"""Options of a run that pushes once."""
INPUT = torch.arange(24).reshape(2, 12) % VOCAB


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", bos_token="w0", unk_token="w0")


@dataclass(frozen=True)
class Run:
    """A small training.

    Attributes:
        folder: of the run. Results are left in `<folder>.json` and `<folder>.safetensors`.
        then: what is done after it: "save" as train.py does, "push" as a user of Trainer does, or nothing.
        lora: adapters that it begins with.
        base: a model of the Hub that it begins with.
        grace: seconds for which a run that is told to stop waits for a push.
        stops: the step at whose end it is told to stop, by SIGTERM.
        divided: several processes divide the model (FSDP2).
    """

    folder: Path
    schedule: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    then: str = "save"
    lora: LoraArguments = field(default_factory=LoraArguments)
    base: str | None = None
    resume: bool | str = False
    grace: float = 20.0
    stops: int | None = None
    divided: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.folder.with_suffix(".json").read_text())
        return found


def made(run: Run) -> MorphingTrainer:
    options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 12, "disable_tqdm": True, "push_to_hub": True}
    model = load_model(run.base) if run.base else tiny_model()
    return MorphingTrainer(
        add_adapters(copy.deepcopy(model), run.lora),
        arguments(run.folder, **{**options, "resume_from_checkpoint": run.resume or None, **run.options}),
        train_dataset=Tokens(41),
        eval_dataset=Tokens(20, seed=2),
        processing_class=tokenizer(),
        data_collator=default_data_collator,
        schedule=list(run.schedule),
    )


class Stops(TrainerCallback):
    """Tells the process to stop."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


def quick() -> None:
    """Do not wait between attempts as long as people would."""
    sending.PAUSES = (0.05, 0.1)


def train(run: Run) -> None:
    """Train and push; a `MorphError` ends the process with code 2, as train.py does."""
    quick()
    publishing.GRACE = run.grace
    warnings.simplefilter("error", ResourceWarning)
    if run.divided:
        sharded()
    try:
        trainer = made(run)
        if run.stops is not None:
            trainer.add_callback(Stops(run.stops))
        trainer.train(run.resume)
        found: dict[str, Any] = {"losses": losses(trainer), "random": torch.rand(3).tolist()}
        if run.then == "save":
            trainer.save_whole(run.folder / "model")
        elif run.then == "push":
            found["pushed"] = trainer.push_to_hub(**run.given).oid
        elif run.then == "push later":
            found["pushed"] = trainer.push_to_hub(blocking=False, **run.given).result().oid
            trainer.create_model_card(**run.given)
        if os.environ.get("RANK", "0") != "0":
            return
        if not run.divided:
            save_file({k: v.contiguous() for k, v in weights(trainer).items()}, run.folder.with_suffix(".safetensors"))
            with torch.no_grad():
                found["logits"] = trainer.model.eval()(INPUT).logits.tolist()
        run.folder.with_suffix(".json").write_text(json.dumps(found))
    except MorphError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def command(*argv: str) -> None:
    """`morph ...`"""
    quick()
    sys.exit(morph.main(list(argv)))


def load(out: Path, *names: str) -> None:
    """The logits of models of the Hub, by our own loader; or what it says."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            with torch.no_grad():
                found[name] = load_model(name)(INPUT).logits.tolist()
        except MorphError as error:
            found[name] = str(error)
    out.write_text(json.dumps(found))


def load_as_anybody(out: Path, *names: str) -> None:
    """The logits of models of the Hub, by transformers."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            model = AutoModelForCausalLM.from_pretrained(name).eval()
            with torch.no_grad():
                found[name] = model(INPUT).logits.tolist()
    out.write_text(json.dumps(found))
