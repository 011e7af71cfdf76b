"""What a resumed run may change, what it may not, and what happens when there is nothing sound to resume."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from morphing_trainer import MorphingTrainer
from morphing_trainer.errors import CheckpointError, ConfigError
from morphing_trainer.run.bundle import read_bundle
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.journal import read_journal
from tests.support import Tokens, same, trainer, weights
from tests.trainer.common import applied, entry, evaluations, ledger, optimizer_state, rates

SCHEDULE = [entry("change_lr", 0.5, 2), entry("stack_layers", 2, 2), entry("set_lr", 3e-3, 4)]
RUN = {"max_steps": 10, "save_steps": 1, "lr_scheduler_type": "constant", "save_total_limit": 100}


def run(folder: Path, schedule: Any = SCHEDULE, resume: Any = None, **changes: Any) -> MorphingTrainer:
    """A run of 10 steps that morphs at 2, 4 and 8."""
    made = trainer(folder, schedule, **{"save_strategy": "steps", **RUN, **changes})
    made.train(resume)
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MorphingTrainer:
    return run(tmp_path_factory.mktemp("whole"))


def resume(whole: MorphingTrainer, folder: Path, step: int, **changes: Any) -> MorphingTrainer:
    """A run in another folder, from a checkpoint of `whole`."""
    return run(folder, resume=str(whole.run_folder / f"checkpoint-{step}"), **changes)


def overrides(resumed: MorphingTrainer) -> dict[str, tuple[Any, Any]]:
    lines = read_journal(resumed.run_folder / "journal.jsonl")
    found = {line["name"]: (line["before"], line["now"]) for line in lines if line["event"] == "override"}
    # Some tests resume without saving; that it is journaled too has a test of its own.
    return {name: change for name, change in found.items() if not name.startswith("save_")}


def test_nothing_changed_nothing_journaled(whole: MorphingTrainer, tmp_path: Path) -> None:
    resumed = resume(whole, tmp_path, 6)
    assert overrides(resumed) == {}
    assert same(weights(resumed), weights(whole))


def test_learning_rate(whole: MorphingTrainer, tmp_path: Path) -> None:
    """The executed `change_lr` applies to the new rate as well."""
    resumed = resume(whole, tmp_path, 6, learning_rate=0.04)
    assert rates(whole)[5:] == [5e-3, 5e-3, 5e-3, 3e-3, 3e-3]
    assert rates(resumed)[5:] == [5e-3, 0.02, 0.02, 3e-3, 3e-3]
    assert overrides(resumed) == {"learning_rate": (0.01, 0.04)}


def test_learning_rate_under_a_decay(tmp_path: Path) -> None:
    first = run(tmp_path / "first", [], lr_scheduler_type="linear")
    resumed = resume(first, tmp_path / "second", 4, schedule=[], lr_scheduler_type="linear", learning_rate=0.02)
    assert rates(resumed)[4:] == pytest.approx([2 * rate for rate in rates(first)[4:]])


def test_max_steps(whole: MorphingTrainer, tmp_path: Path) -> None:
    longer = resume(whole, tmp_path / "longer", 9, max_steps=14)
    assert longer.state.global_step == 14
    assert overrides(longer) == {"max_steps": (10, 14)}
    shorter = resume(whole, tmp_path / "shorter", 3, max_steps=5)
    assert shorter.state.global_step == 5
    assert shorter.model.config.n_layer == 4


def test_max_steps_stretches_the_decay(tmp_path: Path) -> None:
    first = run(tmp_path / "first", [], lr_scheduler_type="linear")
    resumed = resume(first, tmp_path / "second", 5, schedule=[], lr_scheduler_type="linear", max_steps=20)
    assert rates(resumed)[5:] == pytest.approx([0.01 * (20 - step) / 20 for step in range(5, 20)])


def test_batch_size_and_accumulation(tmp_path: Path) -> None:
    """The executed `change_batch_size` applies to the new size as well; samples are still seen once."""
    schedule = [entry("change_batch_size", 2, 2)]
    options = {"max_steps": -1, "num_train_epochs": 1}
    first = ledger(tmp_path / "first", 60, schedule, save_strategy="steps", save_steps=1, **options)
    first.train()
    assert first.state.global_step == 2 + 7
    changed = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    second = ledger(tmp_path / "second", 60, schedule, **options, **changed)
    checkpoint = shutil.copytree(tmp_path / "first" / "checkpoint-8", tmp_path / "checkpoint-8")
    assert read_bundle(checkpoint).state["cursor"]["position"] == 56
    second.train(str(checkpoint))
    assert second.trained == [(9, second.samples)]
    assert sorted(first.samples[:56] + second.samples) == list(range(60))
    assert overrides(second) == {"per_device_train_batch_size": (4, 3), "gradient_accumulation_steps": (1, 2)}
    assert second._train_batch_size == 6


def test_batch_size_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 2, "save_total_limit": 100}
    first = ledger(tmp_path / "first", 60, save_strategy="steps", save_steps=1, **options)
    first.train()
    second = ledger(tmp_path / "second", 60, per_device_train_batch_size=7, **options)
    second.train(str(tmp_path / "first" / "checkpoint-5"))
    # 20 samples of the first epoch are behind it: 40 in 6 steps, then 60 in 9.
    assert second.state.global_step == second.state.max_steps == 5 + 6 + 9
    samples = first.samples[:20] + second.samples
    assert sorted(samples[:60]) == sorted(samples[60:]) == list(range(60))


@pytest.mark.parametrize(("step", "epochs", "end"), [(5, 2, 10), (3, 3, 15), (4, 1.6, 8)])
def test_num_train_epochs(tmp_path: Path, step: int, epochs: float, end: int) -> None:
    """5 steps an epoch; from the end of what was the last epoch, and from within it."""
    options = {"max_steps": -1, "lr_scheduler_type": "linear", "save_total_limit": 100}
    first = ledger(tmp_path / "first", 20, num_train_epochs=1, save_strategy="steps", save_steps=1, **options)
    first.train()
    second = ledger(tmp_path / "second", 20, num_train_epochs=epochs, **options)
    second.train(str(tmp_path / "first" / f"checkpoint-{step}"))
    assert second.state.global_step == second.state.max_steps == end
    assert len(second.samples) == (end - step) * 4
    samples = first.samples[: step * 4] + second.samples
    assert sorted(samples[:20]) == list(range(20))
    assert len({*samples[20:40]}) == len(samples[20:40])
    assert overrides(second) == {"num_train_epochs": (1, epochs)}


def test_evaluation(whole: MorphingTrainer, tmp_path: Path) -> None:
    resumed = resume(whole, tmp_path, 2, eval_steps=3, eval_iters=1)
    assert [step for step, _ in evaluations(resumed)] == [3, 6, 9, 10]
    assert overrides(resumed) == {"eval_steps": (5, 3), "eval_iters": (None, 1)}


def test_intervals_of_saving_and_logging(whole: MorphingTrainer, tmp_path: Path) -> None:
    """They have no effect on the model, so they are simply those of the new run."""
    path = str(whole.run_folder / "checkpoint-2")
    run(tmp_path, resume=path, save_steps=4, logging_steps=4)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-4",
        "checkpoint-8",
    ]


def test_rest_of_the_schedule(whole: MorphingTrainer, tmp_path: Path) -> None:
    changed = [*SCHEDULE[:2], entry("widen_mlp", 2, 3), entry("freeze_layer", "wpe", 1)]
    resumed = resume(whole, tmp_path, 6, schedule=changed)
    assert applied(resumed) == [("change_lr", 2), ("stack_layers", 4), ("widen_mlp", 7), ("freeze_layer", 8)]
    assert [*overrides(resumed)] == ["schedule"]
    assert resumed.model.config.n_inner == 128


def test_a_pending_operation_is_decided_anew_when_the_schedule_changes(whole: MorphingTrainer, tmp_path: Path) -> None:
    """At step 4 `stack_layers` was due. The new schedule has something else there, later."""
    assert read_bundle(whole.run_folder / "checkpoint-4").state["position"]["pending"]
    resumed = resume(whole, tmp_path, 4, schedule=[SCHEDULE[0], entry("widen_mlp", 2, 5)])
    assert applied(resumed) == [("change_lr", 2), ("widen_mlp", 7)]


def test_a_pending_operation_stays_so_when_only_what_comes_after_it_changes(
    whole: MorphingTrainer, tmp_path: Path
) -> None:
    resumed = resume(whole, tmp_path, 4, schedule=[*SCHEDULE[:2], entry("freeze_layer", "wpe", 1)])
    assert applied(resumed) == [("change_lr", 2), ("stack_layers", 4), ("freeze_layer", 5)]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"weight_decay": 0.3}, {"max_grad_norm": 2.0}, {"adam_beta2": 0.9}, {"lr_scheduler_type": "linear"}],
)
def test_fixed_arguments(whole: MorphingTrainer, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"{next(iter(changes))} \(was .*, is .*\) must stay as it was"):
        resume(whole, tmp_path, 6, **changes)


@pytest.mark.parametrize(
    "schedule",
    [
        [],
        SCHEDULE[:1],
        [entry("change_lr", 0.25, 2), *SCHEDULE[1:]],
        [SCHEDULE[0], entry("stack_layers", 2, 2, init="identity"), SCHEDULE[2]],
        [entry("change_lr", 0.5, 3), *SCHEDULE[1:]],
    ],
)
def test_executed_part_of_the_schedule(whole: MorphingTrainer, tmp_path: Path, schedule: list[Any]) -> None:
    with pytest.raises(CheckpointError, match=r"entry \d \(.*\) of the schedule has been executed already"):
        resume(whole, tmp_path, 6, schedule=schedule)


def test_description_of_an_executed_entry_may_change(whole: MorphingTrainer, tmp_path: Path) -> None:
    schedule = [{**SCHEDULE[0], "desc": "calmer"}, *SCHEDULE[1:]]
    assert same(weights(resume(whole, tmp_path, 6, schedule=schedule)), weights(whole))


def test_another_data_set(whole: MorphingTrainer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="101 samples per epoch, but the data set now has 90"):
        resume(whole, tmp_path, 6, data=Tokens(90))


def test_another_optimizer_grouping(whole: MorphingTrainer, tmp_path: Path) -> None:
    def one_group(made: MorphingTrainer) -> None:
        made.get_decay_parameter_names = lambda model: []  # type: ignore[method-assign]

    made = trainer(tmp_path, SCHEDULE, **RUN)
    one_group(made)
    with pytest.raises(CheckpointError, match="other parameters or param groups"):
        made.train(str(whole.run_folder / "checkpoint-6"))


# ---- Nothing sound to resume ---------------------------------------------------------------------------------------


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*: it holds no checkpoint"):
        run(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="checkpoint-7 does not exist"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-7"))
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match="was not saved by this library"):
        run(tmp_path, resume=str(tmp_path / "checkpoint-7"))


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [missing, truncated, flipped, empty])
def test_every_file_of_the_newest_checkpoint_damaged(
    whole: MorphingTrainer, tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever file it is, the checkpoint before is taken, with a warning; named explicitly, it is an error."""
    names = sorted(path.name for path in (whole.run_folder / "checkpoint-9").iterdir())
    assert len(names) >= 10
    for name in names:
        folder = tmp_path / name
        for step in (8, 9):
            shutil.copytree(whole.run_folder / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        damage(folder / "checkpoint-9" / name)
        made = trainer(folder, SCHEDULE, **RUN)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "morphing_trainer"):
            bundle = made.find_bundle(True, Consensus())
        assert bundle is not None
        assert bundle.path.name == "checkpoint-8", name
        assert "checkpoint-9 is damaged" in caplog.text
        assert name in caplog.text
        with pytest.raises(CheckpointError, match=name):
            made.find_bundle(str(folder / "checkpoint-9"), Consensus())


def test_falling_back_is_exact(whole: MorphingTrainer, tmp_path: Path) -> None:
    for step in (5, 6):
        shutil.copytree(whole.run_folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    flipped(tmp_path / "checkpoint-6" / "model.safetensors")
    resumed = run(tmp_path, resume="true")
    assert same(weights(resumed), weights(whole))
    assert same(optimizer_state(resumed), optimizer_state(whole))


def test_all_damaged(whole: MorphingTrainer, tmp_path: Path) -> None:
    for step in (5, 6):
        folder = shutil.copytree(whole.run_folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        truncated(folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"all its checkpoints are damaged \(checkpoint-6, checkpoint-5\)"):
        run(tmp_path, resume=True)


def test_refused_resume_changes_nothing(whole: MorphingTrainer, tmp_path: Path) -> None:
    shutil.copytree(whole.run_folder / "checkpoint-6", tmp_path / "checkpoint-6")
    before = listing(tmp_path)
    with pytest.raises(CheckpointError):
        run(tmp_path, resume=True, seed=8)
    assert listing(tmp_path) == before


# ---- The folder of another run -------------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_of_another_run(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine too")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"holds another run.*--overwrite_output_dir"):
        run(tmp_path, max_steps=3)
    assert listing(tmp_path) == before

    run(tmp_path, max_steps=1, overwrite_output_dir=True)
    now = listing(tmp_path)
    assert now["notes.txt"] == b"mine"
    assert now["other/file"] == b"mine too"
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    starts = [line for line in read_journal(tmp_path / "journal.jsonl") if line["event"] == "start"]
    assert len(starts) == 1


def test_overwriting_with_a_run_that_is_refused_removes_nothing(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="not a whole number"):
        run(tmp_path, [entry("stack_layers", 1.3, 2)], overwrite_output_dir=True)
    assert listing(tmp_path) == before


def test_an_end_that_is_behind_the_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    with pytest.raises(CheckpointError, match="stands at step 12, but this run would end at step 5"):
        trainer(tmp_path, max_steps=5).train(resume_from_checkpoint=True)


def test_every_changed_argument_is_journaled(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=5).train()
    trainer(tmp_path, max_steps=14, eval_strategy="no", eval_steps=None, logging_steps=2).train(True)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    names = {line["name"] for line in lines if line["event"] == "override"}
    assert {"max_steps", "eval_strategy", "eval_steps", "logging_steps"} <= names


def test_a_folder_of_somebody_else_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious.bin").write_text("mine")
    with pytest.raises(ConfigError, match="no run of this library has left there"):
        trainer(tmp_path, overwrite_output_dir=True).train()
    assert (tmp_path / "model" / "precious.bin").read_text() == "mine"
