"""What a resumed run may change, what it may not, and how a change takes effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from peft import LoraConfig

from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import HyperparameterOperation
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Position, Schedule, ahead
from morphing_trainer.schedule_entry import Place
from morphing_trainer.settings import Settings

OVERRIDABLE = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "eval_iters",
    "eval_steps",
)
"""Arguments of the run's course that a resume may change. Every change, of these and of others, is journaled."""

IRRELEVANT = frozenset(
    {"output_dir", "run_name", "resume_from_checkpoint", "overwrite_output_dir", "scaling_schedule_file", "hub_token"}
)
"""Arguments that say nothing of the run, or are nobody's business; the schedule is compared entry by entry."""

LENGTH = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs"})
"""Those of them that change how many steps there are."""

FIXED = (
    "seed",
    "data_seed",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "label_smoothing_factor",
    "bf16",
    "fp16",
    "dataloader_drop_last",
    "train_sampling_strategy",
)
"""Arguments that a resume must not change: the run would no longer be the one that was begun."""


STRUCTURE = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_head",
    "activation_function",
    "layer_norm_epsilon",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "tie_word_embeddings",
)
"""Fields of the model's config that no operation changes."""


@dataclass(frozen=True)
class Override:
    """An argument (or the rest of the schedule) that differs from the one the checkpoint was saved under."""

    name: str
    before: Any
    now: Any


def snapshot(args: MorphingConfig) -> dict[str, Any]:
    """The arguments that matter for a resume, as plain JSON."""
    names = [entry.name for entry in fields(args) if entry.init and entry.name not in IRRELEVANT]
    return {**{name: _plain(getattr(args, name)) for name in names}, "world_size": args.world_size}


def compare(bundle: Bundle, now: Mapping[str, Any], schedule: Schedule) -> list[Override]:
    """What this run changes against the checkpoint.

    Args:
        now: `snapshot` of this run's arguments.

    Raises:
        CheckpointError: if it changes what must not change: a fixed argument, or an operation already executed.
    """
    saved = bundle.arguments
    changed = [name for name in FIXED if saved.get(name) != now[name]]
    if changed:
        listed = ", ".join(f"{name} (was {saved.get(name)!r}, is {now[name]!r})" for name in changed)
        raise CheckpointError(
            f"resume from {bundle.path}: {listed} must stay as it was. A resume may change {', '.join(OVERRIDABLE)} "
            "and the operations not yet executed; for anything else start a new run with model_name_or_path."
        )
    for executed in bundle.state["executed"]:
        index = executed["index"]
        entry = schedule.at(index)
        if entry is None or _essence(entry.to_dict()) != _essence(executed["entry"]):
            place = (entry.place if entry else Place(index)).words(executed["entry"]["name"])
            raise CheckpointError(
                f"resume from {bundle.path}: {place} of the schedule has been executed already and must stay as it "
                "was; change only what comes after it (of a repeat, write out the rounds that are done)."
            )
    overrides = [Override(name, saved.get(name), now[name]) for name in now if saved.get(name) != now[name]]
    done = int(bundle.state["position"]["done"])
    before, after = ahead(bundle.schedule, done), ahead(schedule.to_list(), done)
    if before != after:
        overrides.append(Override("schedule", before, after))
    return overrides


def check_model(bundle: Bundle, fresh: RunState, saved: RunState) -> None:
    """Refuse to resume under a starting model that is not the one the run began with.

    The model itself is rebuilt from the checkpoint; but who starts the run with other sizes expects them to count.

    Args:
        fresh, saved: the state of a run that would begin now, and the checkpoint's.

    Raises:
        CheckpointError: naming every difference.
    """
    began, now = saved.began, fresh.began
    facts, facts_now = _starting_point(began), _starting_point(now)
    changed = [
        f"{name} (was {_shown(facts[name])}, is {_shown(facts_now[name])})"
        for name in facts
        if facts[name] != facts_now[name]
    ]
    changed += _differing("LoRA on", _adapters(began), _adapters(now), "none")
    changed += _differing("weights", _frozen(began), _frozen(now), "trained")
    if changed:
        raise CheckpointError(
            f"resume from {bundle.path}: the run began with another model: {', '.join(changed)}. Start it with the "
            "same model arguments; the model as it has grown is taken from the checkpoint."
        )


def _starting_point(spec: ModelSpec) -> dict[str, Any]:
    """What a model is made from, by the names of the arguments that say it."""
    facts: dict[str, Any] = {"n_layer": spec.layers, "n_inner": spec.mlp}
    facts |= {name: getattr(spec.config, name) for name in STRUCTURE}
    options = spec.adapter or LoraConfig()
    lora = {"lora_alpha": spec.alpha, "lora_dropout": options.lora_dropout, "use_rslora": options.use_rslora}
    return {**facts, **lora}


def _adapters(spec: ModelSpec) -> dict[str, str]:
    return {module: f"rank {site.rank}, alpha {site.alpha:g}" for module, site in spec.sites.items()}


def _frozen(spec: ModelSpec) -> dict[str, str]:
    return dict.fromkeys(sorted(map(spec.name_before, spec.frozen)), "frozen")


def _differing(what: str, before: Mapping[str, str], now: Mapping[str, str], absent: str) -> list[str]:
    """The first difference between two tables, and how many more there are; nothing if there is none."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    name = names[0]
    return [f"{what} {name}{more} (was {before.get(name, absent)}, is {now.get(name, absent)})"]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def position_under(schedule: Schedule, position: Position, before: Sequence[Mapping[str, Any]]) -> Position:
    """Where a run that stood at `position` in the schedule `before` stands in this one.

    An operation that is due stays so if its entry is the same: what had been decided, was decided of the old one.
    """
    old, now = Schedule.of(list(before)).at(position.done), schedule.at(position.done)
    stays = old is not None and now is not None and old.to_dict() == now.to_dict()
    return replace(position, pending=position.pending if stays else None).settle(schedule)


def replayed(state: RunState, initial: Settings, schedule: Schedule) -> Settings:
    """The settings now, had the run begun with `initial`: the executed operations, applied in order."""
    settings = initial
    for executed in state.executed:
        entry = schedule.at(executed["index"])
        assert entry is not None
        if isinstance(entry.operation, HyperparameterOperation):
            settings = entry.operation.update(settings, executed["step"])
    return settings


def _essence(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what has no effect on the run."""
    return {key: value for key, value in entry.items() if key not in ("desc", "completed")}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
