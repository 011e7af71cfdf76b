from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from morphing_trainer import planning
from morphing_trainer.errors import Problem, ScheduleError
from morphing_trainer.functional import morph
from morphing_trainer.lineage import ModelSpec
from morphing_trainer.operations import ArchitectureOperation
from morphing_trainer.planning import MOST_EFFORT, operation_rng, play
from morphing_trainer.reporting.records import Phase
from morphing_trainer.schedule import Position, Schedule
from morphing_trainer.settings import Settings
from tests.support import tiny_config, tiny_model

SETTINGS = Settings(1e-3, batch_size=8, grad_accum=2, warmup_steps=10, eval_iters=20, eval_interval=50)


def entry(name: str, value: Any, **options: Any) -> dict[str, Any]:
    return {"name": name, "value": value, **({} if "when" in options else {"max_wait_iters": 5}), **options}


def plan(*entries: dict[str, Any], settings: Settings = SETTINGS, layers: int = 2, **options: Any) -> list[Phase]:
    config = tiny_config(n_layer=layers, **options.pop("config", {}))
    return play(Schedule.of(list(entries)), ModelSpec(config), settings, **options)


def problems(*entries: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ScheduleError) as caught:
        plan(*entries, **options)
    return [str(problem).removeprefix("schedule: ") for problem in caught.value.problems]


def test_a_whole_schedule_against_the_real_models() -> None:
    """Every phase's figures are those of the model that the operations really make."""
    entries = [
        entry("change_lr", 2),
        entry("stack_layers", 2, init="identity"),
        entry("widen_mlp", 1.5),
        entry("freeze_layer", ["wte", "attn.1-2"]),
        entry("stack_layers", [0, 1, 2, 3, 3]),
        entry("set_mlp_width", 100, split="newborn"),
        entry("unfreeze_layer", "*"),
        entry("reset_optimizer_state", None),
    ]
    phases = plan(*entries)
    model = tiny_model()
    assert [phase.index for phase in phases] == list(range(len(entries) + 1))
    assert (phases[0].operation, phases[0].trigger) == (None, "")
    for phase, step in zip(phases[1:], entries, strict=True):
        if step["name"] != "change_lr":
            model = morph(model, {key: value for key, value in step.items() if key != "max_wait_iters"}).model
        assert (phase.operation, phase.trigger) == (step["name"], "after 5 steps")
        assert phase.parameters == sum(p.numel() for p in model.parameters())
        assert phase.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert (phase.layers, phase.mlp, phase.hidden) == (model.config.n_layer, model.config.n_inner or 64, 16)
    assert [phase.layers for phase in phases] == [2, 2, 4, 4, 4, 5, 5, 5, 5]
    assert [phase.mlp for phase in phases] == [64, 64, 64, 96, 96, 96, 100, 100, 100]


def test_hyper_parameters_of_every_stage() -> None:
    phases = plan(
        entry("change_lr", 0.5),
        entry("set_lr", 0.1),
        entry("change_batch_size", 1.5),
        entry("set_batch_size_relative", 0.5),
        entry("change_batch_size", 0.01),
        entry("set_batch_size", 32),
        entry("change_grad_accum", 2.5),
        entry("change_grad_accum", 0.1),
        entry("set_grad_accum", 3),
        entry("change_warmup_iters", 1.55),
        entry("set_warmup_iters", 4),
        entry("change_eval_iters", 0.001),
        entry("set_eval_iters", 7),
        entry("change_eval_interval", 0.5),
        entry("set_eval_interval", 9),
        entry("reset_lr_schedule", None),
    )
    assert [phase.settings.learning_rate for phase in phases[:4]] == [1e-3, 5e-4, 0.1, 0.1]
    assert [phase.settings.batch_size for phase in phases[2:7]] == [8, 12, 8, 1, 32]
    assert [phase.settings.grad_accum for phase in phases[6:10]] == [2, 5, 1, 3]
    assert [phase.settings.warmup_steps for phase in phases[9:12]] == [10, 15, 4]
    assert [phase.settings.eval_iters for phase in phases[11:14]] == [20, 1, 7]
    assert [phase.settings.eval_interval for phase in phases[13:16]] == [50, 25, 9]
    assert {(phase.parameters, phase.layers) for phase in phases} == {(phases[0].parameters, 2)}


def test_every_problem_is_judged_on_the_model_that_the_entries_before_it_leave() -> None:
    found = problems(
        entry("stack_layers", 1.3),
        entry("freeze_layer", "attn.2"),
        entry("stack_layers", 1.5),
        entry("freeze_layer", "attn.2"),  # there is one now
        entry("freeze_layer", "attn.3"),
        entry("set_mlp_width", 32),
        entry("widen_mlp", 1.001),
        entry("stack_layers", [0, 1, 2, 3]),
        entry("freeze_layer", "lm_head"),
        entry("freeze_layer", "*"),
        entry("stack_layers", [0, 0, 1, 2, 2], init="identity"),
        entry("stack_layers", [1, 0, 2, 3, 4, 4], init="identity"),
        entry("stack_layers", [0, 1, 2]),
    )
    heads = [problem.split(":")[0] for problem in found]
    assert heads == [
        "entry 1 (stack_layers), value",
        "entry 2 (freeze_layer), value",
        "entry 5 (freeze_layer), value",
        "entry 6 (set_mlp_width), value",
        "entry 7 (widen_mlp), value",
        "entry 8 (stack_layers), value",
        "entry 9 (freeze_layer), value",
        "entry 10 (freeze_layer), value",
        "entry 12 (stack_layers), value",
        "entry 13 (stack_layers), value",
    ]
    assert "2 layers times 1.3 is 2.6, not a whole number of layers; use 1.5 for 3 layers" in found[0]
    assert "'attn.2' names no component of this model with 2 layers; it has attn.0 to attn.1" in found[1]
    assert "with 3 layers; it has attn.0 to attn.2" in found[2]
    assert "has 64 units already and cannot shrink to 32" in found[3]
    assert "64 MLP units times 1.001 is 64.064, not a whole number; use set_mlp_width 64" in found[4]
    assert "the list names layer 3, but the model has layers 0 to 2" in found[5]
    assert "'lm_head' shares its weights with 'wte' and cannot be frozen alone" in found[6]
    assert "nothing would be left to train" in found[7]
    assert "expected [0, 1, 2, 3, 4]" in found[8]
    assert "the list has 3 layers, but must have more than the model's 5" in found[9]


def test_layer_12_of_12_layers() -> None:
    (found,) = problems(entry("freeze_layer", "h.12"), layers=12)
    assert "it has h.0 to h.11" in found
    plan(entry("freeze_layer", "h.11"), layers=12)
    plan(entry("stack_layers", 1.25), layers=12)


def test_a_tied_head_is_frozen_with_its_embedding_and_an_untied_one_alone() -> None:
    _, phase = plan(entry("freeze_layer", ["wte", "lm_head"]))
    assert phase.parameters - phase.trainable == 32 * 16
    _, phase = plan(entry("freeze_layer", "lm_head"), config={"tie_word_embeddings": False})
    assert phase.parameters - phase.trainable == 32 * 16


def test_settings_that_do_not_fit() -> None:
    bare = Settings(1e-3, 8, 1, 0, eval_iters=None, eval_interval=None)
    found = problems(
        entry("change_eval_iters", 2),
        entry("set_eval_iters", 5),
        entry("change_eval_iters", 2),  # there is something to multiply now
        entry("set_eval_interval", 5),
        settings=bare,
    )
    assert [problem.split(":")[0] for problem in found] == [
        "entry 1 (change_eval_iters), value",
        "entry 4 (set_eval_interval), value",
    ]


@pytest.mark.parametrize("name", ["change_lr", "change_batch_size", "change_grad_accum", "change_warmup_iters"])
def test_factors_beyond_all_numbers_are_problems_too(name: str) -> None:
    found = problems(*[entry(name, 1e308)] * 4)
    assert found
    assert all("value: " in problem for problem in found)


def test_models_whose_blocks_depend_on_their_place() -> None:
    (found,) = problems(entry("stack_layers", 2), config={"scale_attn_by_inverse_layer_idx": True})
    assert "scale_attn_by_inverse_layer_idx" in found


def test_triggers_that_can_never_fire() -> None:
    by_loss = {"max_wait_iters": None, "trigger_loss": 3.0}
    never = {"max_wait_iters": None, "trigger_loss": 0}
    assert len(plan(entry("change_lr", 2, **by_loss))) == 2
    (found,) = problems(entry("change_lr", 2, **by_loss), evaluates=False)
    assert found.startswith("entry 1 (change_lr): can never fire (loss < 3): the run does not evaluate; set eval_strat")
    (found,) = problems(entry("change_lr", 2, **never))
    assert found.startswith("entry 1 (change_lr): can never fire (loss < 0): no loss is < 0")
    (found,) = problems(entry("change_lr", 2, when={"plateau": {"window": 3}}), evaluates=False)
    assert "can never fire" in found
    plan(entry("change_lr", 2, trigger_loss=0), evaluates=False)
    plan(entry("change_lr", 2, when={"any": [{"loss_below": 1}, {"at_step": 3}]}), evaluates=False)


def test_several_kinds_of_problem_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "- {name: change_lr, value: 2, trigger_loss: 0}\n"
        "- name: stack_layers\n  value: 1.3\n  max_wait_iters: 3\n"
        "- {name: freeze_layer, value: h.9, trigger_loss: 0}\n"
    )
    with pytest.raises(ScheduleError) as caught:
        play(Schedule.load(path), ModelSpec(tiny_config()), SETTINGS)
    assert [problem.where for problem in caught.value.problems] == [
        f"{path}:1: entry 1 (change_lr)",
        f"{path}:3: entry 2 (stack_layers), value",
        f"{path}:5: entry 3 (freeze_layer), value",
        f"{path}:5: entry 3 (freeze_layer)",
    ]


def test_what_is_done_is_not_played_again() -> None:
    done = entry("stack_layers", 1.3, completed=True)
    phases = plan(done, entry("stack_layers", 2), done, entry("change_lr", 2))
    assert [(phase.index, phase.layers) for phase in phases] == [(1, 2), (2, 4), (4, 4)]
    rest = plan(
        entry("stack_layers", 1.3), entry("change_lr", 2), entry("stack_layers", 2), position=Position(1, since=70)
    )
    assert [(phase.index, phase.operation) for phase in rest] == [(1, None), (2, "change_lr"), (3, "stack_layers")]


def test_playing_costs_no_weights_and_no_random_numbers() -> None:
    before = torch.get_rng_state()
    config = {"n_embd": 4096, "n_head": 32, "vocab_size": 50_000, "n_positions": 2048}
    phases = plan(entry("stack_layers", 8), entry("freeze_layer", "h.0-7"), config=config)
    assert phases[-1].parameters > 3e9  # 12 GB of them, had they been made
    assert torch.equal(torch.get_rng_state(), before)


def test_an_operation_draws_the_same_numbers_in_the_dry_run_and_in_the_run() -> None:
    def draws(seed: int, index: int) -> list[int]:
        return torch.randint(2**31, (4,), generator=operation_rng(seed, index)).tolist()

    assert draws(7, 3) == draws(7, 3)
    assert len({tuple(draws(seed, index)) for seed in (0, 7) for index in range(4)}) == 8
    operation = Schedule.of([entry("widen_mlp", 1.5)]).entries[0].operation
    assert isinstance(operation, ArchitectureOperation)
    spec = ModelSpec(tiny_config())
    dry, real = (operation.morph(spec, operation_rng(7, 0)).lineage.origins for _ in range(2))
    other = operation.morph(spec, operation_rng(7, 1)).lineage.origins
    assert _facts(dry) == _facts(real)
    assert _facts(dry) != _facts(other)


def _facts(origins: Any) -> str:
    torch.set_printoptions(threshold=math.inf)  # type: ignore[arg-type]  # whole tensors, not their edges
    try:
        return repr(origins)
    finally:
        torch.set_printoptions(profile="default")


def test_nothing_to_evaluate_again() -> None:
    schedule = Schedule.of([{"name": "stack_layers", "value": 2, "max_wait_iters": 1, "reevaluate": True}])
    spec = ModelSpec(tiny_config())
    settings = Settings(1e-3, 4, 1, 0, None, None)
    assert len(play(schedule, spec, settings)) == 2
    with pytest.raises(ScheduleError, match=r"entry 1 \(stack_layers\), reevaluate: there is no evaluation data"):
        play(schedule, spec, settings, can_evaluate=False)


# --- Repeats ---


def group(repeat: Any, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"repeat": repeat, "operations": list(entries)}


def test_a_finite_repeat_is_played_like_what_is_written_out() -> None:
    operations = [entry("stack_layers", 1.5), entry("change_lr", 0.5)]
    written = plan(*operations * 3, layers=8)
    assert plan(group(3, *operations), layers=8) == written
    assert [phase.layers for phase in written] == [8, 12, 12, 18, 18, 27, 27]
    assert not any(phase.repeats for phase in written)


def test_a_problem_names_item_operation_and_round_and_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "- {name: change_lr, value: 2, max_wait_iters: 1, repeat: 2}\n"
        "- repeat: 9\n"
        "  operations:\n"
        "  - {name: change_lr, value: 2, trigger_loss: 0}\n"
        "  - name: stack_layers\n"
        "    value: 1.5\n"
        "    max_wait_iters: 3\n"
    )
    with pytest.raises(ScheduleError) as caught:
        play(Schedule.load(path), ModelSpec(tiny_config(n_layer=4)), SETTINGS)
    assert [problem.where for problem in caught.value.problems] == [
        f"{path}:4: entry 2, operation 1 (change_lr), round 1",
        f"{path}:6: entry 2, operation 2 (stack_layers), round 3, value",
    ]
    assert "9 layers times 1.5 is 13.5, not a whole number" in caught.value.problems[1].what


class Rounds:
    """Counts the operations that a dry run plays."""

    def __init__(self) -> None:
        self.played: list[int] = []

    def __call__(self, phase: Phase) -> None:
        self.played.append(phase.index)


def test_the_endless_part_is_played_until_a_round_changes_nothing() -> None:
    rounds = Rounds()
    operations = [entry("set_lr", 0.1), entry("freeze_layer", "wpe"), entry("reset_lr_schedule", None)]
    phases = plan(entry("stack_layers", 2), group("end", *operations), check=rounds)
    assert [(phase.index, phase.operation, phase.repeats) for phase in phases] == [
        (0, None, False),
        (1, "stack_layers", False),
        (2, "set_lr", True),
        (3, "freeze_layer", True),
        (4, "reset_lr_schedule", True),
    ]
    assert rounds.played == [1, *range(2, 8)]  # the second round leaves everything as the first did


def test_the_endless_part_is_played_as_far_as_the_run_may_come() -> None:
    rounds = Rounds()
    halved = entry("change_lr", 0.5, max_wait_iters=100)
    phases = plan(halved, group("end", halved, entry("set_warmup_iters", 5, max_wait_iters=0)), check=rounds, steps=504)
    assert len(phases) == 4
    assert [phase.settings.learning_rate for phase in phases] == [1e-3, 5e-4, 2.5e-4, 2.5e-4]
    # At 100; 200, 201; 301, 302; 402, 403; 503, and what would be due at the last step, 504, is not applied.
    assert rounds.played == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("trigger", "last"),
    [
        ({"max_wait_iters": 10}, 9),
        ({"trigger_loss": 0, "max_wait_iters": 10}, 9),
        ({"trigger_loss": 3, "max_wait_iters": 10}, 9),  # evaluations are further apart
        ({"trigger_loss": 3}, 1),  # after 50 steps; 100 is the last
        ({"when": {"plateau": {"window": 3}}}, 1),
        ({"when": {"at_tokens": 5}}, 100),
        ({"when": {"at_step": 90}}, 10),
        ({"when": {"all": [{"waited": 1}, {"any": [{"loss_below": 0}, {"waited": 30}]}]}}, 3),
        ({"when": {"any": [{"at_step": 99}, {"waited": 60}]}}, 2),
    ],
)
def test_how_often_a_trigger_may_fire_within_the_run(trigger: dict[str, Any], last: int) -> None:
    rounds = Rounds()
    line = entry("change_lr", 1.01, **({"max_wait_iters": None} | trigger if "when" not in trigger else trigger))
    plan({**line, "repeat": "end"}, check=rounds, steps=100)
    assert rounds.played == [*range(1, last + 1)]


def test_without_evaluations_by_steps_a_loss_may_fire_at_every_step() -> None:
    rounds = Rounds()
    settings = Settings(1e-3, 8, 1, 0, None, eval_interval=None)
    line = entry("change_lr", 1.01, max_wait_iters=None, trigger_loss=3)
    plan({**line, "repeat": "end"}, check=rounds, steps=20, settings=settings)
    assert rounds.played == [*range(1, 20)]  # at steps 1 to 19


def test_an_endless_growth_beyond_the_limit_is_a_problem_if_the_run_comes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "- {name: change_lr, value: 2, max_wait_iters: 10}\n"
        "- repeat: end\n"
        "  operations:\n"
        "  - {name: set_lr, value: 2, max_wait_iters: 9}\n"
        "  - name: stack_layers\n"
        "    value: 80\n"
        "    max_wait_iters: 0\n"
    )
    schedule, spec = Schedule.load(path), ModelSpec(tiny_config())
    with pytest.raises(ScheduleError) as caught:
        play(schedule, spec, SETTINGS, steps=1000)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:6: entry 2, operation 2 (stack_layers), round 2, value"
    assert problem.what == (
        "12800 layers are more than can be meant; the limit is 1000; the run may come to this round, and repeat: 1 "
        "would end before it"
    )
    # The second round ends at step 30: 10; 19, 20; 29, 30.
    with pytest.raises(ScheduleError):
        play(schedule, spec, SETTINGS, steps=31)
    assert [phase.layers for phase in play(schedule, spec, SETTINGS, steps=30)] == [2, 2, 2, 160]


def test_the_first_round_is_judged_even_if_the_run_ends_before() -> None:
    (found,) = problems(group("end", entry("stack_layers", 1.3, max_wait_iters=50)), steps=10)
    assert found.startswith("entry 1, operation 1 (stack_layers), round 1, value: 2 layers times 1.3")
    assert "repeat:" not in found
    (found,) = problems(group("end", entry("change_lr", 2, max_wait_iters=None, trigger_loss=3)), evaluates=False)
    assert "can never fire" in found


def test_playing_an_endless_part_ends() -> None:
    rounds = Rounds()
    plan(group("end", entry("change_lr", 0.999), entry("change_lr", 1.0005)), check=rounds)
    assert len(rounds.played) == MOST_EFFORT
    rounds = Rounds()
    plan({**entry("stack_layers", [0, 1, 1]), "repeat": "end"}, layers=2, check=rounds, steps=1)
    assert rounds.played == [1]
    morphs = Rounds()
    lines = [entry("freeze_layer", "wpe"), entry("unfreeze_layer", "wpe"), entry("change_lr", 0.999)]
    plan(group("end", *lines), check=morphs)
    effort = 2 * len(tiny_model().state_dict()) + 1  # with the tied head, one tensor more than parameters
    assert MOST_EFFORT / effort < len(morphs.played) / 3 < MOST_EFFORT / effort * 1.1


def test_more_than_can_be_checked_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_WRITTEN", 500)  # instead of ten seconds
    lines = [entry("freeze_layer", "wpe"), entry("unfreeze_layer", "wpe")]
    assert len(plan(*lines * 5)) == 11
    assert len(plan(*[entry("change_lr", 0.999)] * 450)) == 451  # costs little
    (found,) = problems(*lines * 30)
    assert "entry 19" in found
    assert "would take too long; write fewer, or repeat them to the end" in found


def test_an_endless_part_from_its_middle() -> None:
    """A resumed run may stand anywhere in it; the plan shows the next round, beginning there."""
    lines = [entry("change_lr", 0.5), group("end", entry("set_lr", 0.1), entry("stack_layers", 2))]
    phases = plan(*lines, position=Position(8, since=70), steps=73)
    assert [(phase.index, phase.operation) for phase in phases] == [(8, None), (9, "stack_layers"), (10, "set_lr")]
    assert [phase.repeats for phase in phases] == [False, True, True]


def test_a_check_of_the_caller_sees_every_round() -> None:
    schedule = Schedule.of([group("end", entry("change_batch_size", 2), entry("change_lr", 0.5))])

    def small(phase: Phase) -> None:
        if phase.settings.batch_size > 64:
            raise ScheduleError([Problem(schedule.where(phase.index - 1), "too large")])

    with pytest.raises(ScheduleError) as caught:
        play(schedule, ModelSpec(tiny_config()), SETTINGS, check=small)
    assert [str(problem) for problem in caught.value.problems] == [
        "schedule: entry 1, operation 1 (change_batch_size), round 4: too large",
        "schedule: entry 1, operation 2 (change_lr), round 4: too large",
    ]
    assert len(play(schedule, ModelSpec(tiny_config()), SETTINGS, check=small, steps=35)) == 3


def test_a_schedule_with_faults_is_not_played_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told first is enough to go on with; without faults all of it is played."""
    monkeypatch.setattr(planning, "MOST_EFFORT", 100)
    bad, good = entry("freeze_layer", "h.99"), entry("freeze_layer", "wpe")
    assert len(problems(bad, good, bad)) == 2
    assert len(problems(bad, *[good] * 20, bad)) == 1
    assert len(plan(*[good] * 20)) == 21
