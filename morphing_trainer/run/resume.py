"""What a resumed run may change, what it may not, and how a change takes effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from peft import LoraConfig

from morphing_trainer.config import MorphingConfig
from morphing_trainer.errors import CheckpointError
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.memory.splitting import halved
from morphing_trainer.operations import HyperparameterOperation, MeasuredOperation
from morphing_trainer.run.batches import Batches, split
from morphing_trainer.run.bundle import Bundle
from morphing_trainer.run.course import Course, with_rate
from morphing_trainer.run.digest import Part, facts
from morphing_trainer.run.state import RunState
from morphing_trainer.schedule import Position, Schedule, ahead
from morphing_trainer.schedule_entry import Place
from morphing_trainer.settings import Settings

OVERRIDABLE = (
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "batch_size",
    "mini_batch_size",
    "warmup_steps",
    "max_steps",
    "num_train_epochs",
    "eval_iters",
    "eval_steps",
)
"""Arguments of the run's course that a resume may change. Every change, of these and of others, is journaled."""

IRRELEVANT = frozenset(
    {"output_dir", "run_name", "resume_from_checkpoint", "overwrite_output_dir", "scaling_schedule_file", "hub_token"}
    | {"ignore_optimizer", "reset_history"}  # of a resume itself, which notes it
)
"""Arguments that say nothing of the run, or are nobody's business; the schedule is compared entry by entry."""

LENGTH = frozenset(
    {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "step_samples",
        "max_steps",
        "num_train_epochs",
        "world_size",
        "stages",
    }
)
"""Those of them that change how many steps there are."""

OPTIMIZER = (
    "optimizer",
    "optim",
    "optim_args",
    "momentum",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optimizer_warmup_steps",
    "optimizer_warmup_fraction",
)
"""Arguments of the optimizer. Who begins with a new one may change them."""

BATCH = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps", "batch_size", "mini_batch_size"})
"""Those by which one says how many samples a step has. Who changes none of them keeps the number, on any number of
processes."""

FIXED = (
    "seed",
    "data_seed",
    *OPTIMIZER,
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
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "activation_function",
    "layer_norm_epsilon",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "tie_word_embeddings",
)
"""Fields of the model's config that no operation changes."""


NOTES = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"})
"""Fields of a model's config that say nothing of its shape or function."""


@dataclass(frozen=True)
class Override:
    """An argument (or the rest of the schedule) that differs from the one the checkpoint was saved under."""

    name: str
    before: Any
    now: Any


def snapshot(args: MorphingConfig) -> dict[str, Any]:
    """The arguments that matter for a resume, as plain JSON."""
    names = [entry.name for entry in fields(args) if entry.init and entry.name not in IRRELEVANT]
    more = {"step_samples": args.step_samples, "world_size": args.world_size}
    return {**{name: _plain(getattr(args, name)) for name in names}, **more}


def alike(arguments: Mapping[str, Any], schedule: Schedule, course: Course, state: RunState) -> dict[Part, Any]:
    """What has to be the same on all ranks where a run begins or goes on, its tensors aside.

    Args:
        arguments: `snapshot` of this run's arguments.
    """
    spec, position = state.spec.to_dict(), asdict(state.position)
    # Whoever saves a model notes these in its config, which only one rank does.
    spec["config"] = {name: value for name, value in spec["config"].items() if name not in NOTES}
    return {
        **facts("argument", {name: arguments[name] for name in (*FIXED, *OVERRIDABLE)}),
        **facts("schedule", {f"entry {number}": entry for number, entry in enumerate(schedule.to_list())}),
        **facts("stage", {stage.name: stage.facts() for stage in course.stages}),
        **facts("setting", state.settings.to_dict()),
        **facts("run", {"step": state.step, "end": state.end, "position": position, "cursor": state.cursor.state()}),
        **facts("model", spec),
    }


def compare(
    bundle: Bundle, now: Mapping[str, Any], schedule: Schedule, course: Course, *, new_optimizer: bool = False
) -> list[Override]:
    """What this run changes against the checkpoint.

    Args:
        now: `snapshot` of this run's arguments.
        new_optimizer: the checkpoint's optimizer is left behind.

    Raises:
        CheckpointError: if it changes what must not change: a fixed argument, or an operation already executed.
    """
    saved = bundle.arguments
    free = OPTIMIZER if new_optimizer else ()
    changed = [name for name in FIXED if saved.get(name) != now[name] and name not in free]
    if changed:
        listed = ", ".join(f"{name} (was {saved.get(name)!r}, is {now[name]!r})" for name in changed)
        raise CheckpointError(
            f"resume from {bundle.path}: {listed} must stay as it was. A resume may change {', '.join(OVERRIDABLE)} "
            "and the operations not yet executed; for anything else start a new run with model_name_or_path."
        )
    _check_stages(bundle, course)
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
    stages = [stage.facts() for stage in course.stages]
    if len(stages) > 1 and stages != bundle.stages:
        overrides.append(Override("stages", bundle.stages, stages))
    return overrides


def _check_stages(bundle: Bundle, course: Course) -> None:
    """Refuse a plan whose stages so far are others than those that the run went through.

    Raises:
        CheckpointError: naming the first that differs.
    """
    reached = len(bundle.state["stages"])
    before, now = [stage["name"] for stage in bundle.stages][:reached], course.names[:reached]
    if before != now:
        raise CheckpointError(
            f"resume from {bundle.path}: the run has been through the stages {', '.join(before)}, but the plan now "
            f"begins with {', '.join(now)}. Change only what comes after stage {before[-1]!r}."
        )
    current, stage = bundle.stages[reached - 1], course.stages[reached - 1].facts()
    if current["samples"] == stage["samples"] and current["data"] != stage["data"]:  # another number is told elsewhere
        of = f" of stage {stage['name']!r}" if len(course.stages) > 1 else ""
        raise CheckpointError(
            f"resume from {bundle.path}: the training data{of} is not what it was. Resume with the same data, "
            "tokenizer and block_size."
        )


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
    names = [name for name in STRUCTURE if hasattr(spec.config, name) and name not in spec.config.attribute_map]
    facts |= {name: getattr(spec.config, name) for name in names}
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


def replayed(state: RunState, initial: Settings, schedule: Schedule, course: Course) -> Settings:
    """The settings now, had the run begun with `initial`: executed operations, stages and halvings, in order.

    What was measured is taken over. Batches that were halved for want of memory stay so.
    """
    settings, stage = initial, 0
    for number, executed in enumerate([*state.executed, {"stage": state.stage_index}]):
        for halving in state.halvings:
            if halving["executed"] == number:
                settings = halved(settings, course.processes)
        while stage < executed["stage"]:
            stage += 1
            settings = with_rate(settings, course.stages[stage])
        if "index" not in executed:
            break
        entry = schedule.at(executed["index"])
        assert entry is not None
        if executed.get("rolled_back"):
            continue
        if isinstance(entry.operation, MeasuredOperation):
            if "measured" not in executed:
                what = f"does not tell what {entry.operation.name} measured"
                raise CheckpointError(f"checkpoint: {what}; resume from another one.")
            settings = entry.operation.updated(settings, executed["measured"], course.processes)
        elif isinstance(entry.operation, HyperparameterOperation):
            settings = course.settled(entry.operation.update(settings, executed["step"]))
    return settings


def batch_given(changed: set[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a resume asks for another number of samples in a step.

    Args:
        changed: names of the arguments that differ.
        before, now: `snapshot` of the arguments. What `batch_size` comes to on each device is no argument of its own.
    """
    whole = before.get("batch_size") is not None and now["batch_size"] is not None
    return bool(changed & ({"batch_size", "mini_batch_size"} if whole else BATCH))


def divided_anew(settings: Settings, saved: Settings, processes_before: int, processes: int) -> Settings:
    """The settings under which a step has as many samples as when the checkpoint was saved, on any number of processes.

    Args:
        settings: those of now; no micro-batch becomes larger than theirs.
        saved: those of the checkpoint, of a run on `processes_before`.

    Raises:
        ConfigError: if there are more processes than samples in a step.
    """
    if processes == processes_before:
        cut = Batches(saved.batch_size, saved.grad_accum, saved.step_samples)
    else:
        samples = saved.step_samples or saved.batch_size * saved.grad_accum * processes_before
        cut = split(samples, settings.batch_size, processes)
    return replace(settings, batch_size=cut.per_device, grad_accum=cut.grad_accum, step_samples=cut.step_samples)


def _essence(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without what has no effect on the run."""
    return {key: value for key, value in entry.items() if key not in ("desc", "completed")}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
