"""Pushing while training and after it: what arrives, how a failing Hub leaves the run alone, how nothing is lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from morphing_trainer import LoraArguments, Schedule
from tests.hub import routes
from tests.hub.conftest import WRITES
from tests.hub.program import END, Run, command, load, load_as_anybody, train
from tests.hub.server import Fault, HubServer
from tests.hub.store import Commit
from tests.hub.warm import Done, Warm
from tests.trainer.common import entry

GROWS: list[dict[str, Any]] = [entry("stack_layers", 2, 3), entry("widen_mlp", 2, 2)]
PLAIN = {
    *("README.md", ".gitattributes", "config.json", "generation_config.json", "journal.jsonl", "model.safetensors"),
    *("schedule.yaml", "tokenizer.json", "tokenizer_config.json"),
}
ADAPTERS = {"adapter_config.json", "adapter_model.safetensors"}


def trained(warm: Warm, run: Run, token: str | None = WRITES, code: int = 0) -> Done:
    done = warm.run(train, run, HF_TOKEN=token)
    assert done.code == code, done.said
    assert "Traceback" not in done.said and "hf_" not in done.said, done.said
    return done


def newest(hub: HubServer, name: str, branch: str = "main") -> Commit:
    return hub.store.repositories[name].history(branch)[0]


def text(commit: Commit, name: str) -> str:
    return commit.files[name].content.decode()


def logits(warm: Warm, out: Path, *names: str, work: Any = load_as_anybody, token: str | None = None) -> dict[str, Any]:
    done = warm.run(work, out, *names, HF_TOKEN=token)
    assert done.code == 0, done.said
    found: dict[str, Any] = json.loads(out.read_text())
    return {name: torch.tensor(value) if isinstance(value, list) else value for name, value in found.items()}


def check_clean(hub: HubServer, run: Path) -> None:
    """Nothing that was sent names a place of this machine, or a token."""
    told = [b"hf_", str(run.parent).encode(), str(Path.home()).encode() + b"/", b"optimizer.pt"]
    for commit in hub.store.repositories[f"me/{run.name}"].commits.values():
        for name, blob in commit.files.items():
            found = [each for each in told if each in blob.content]
            assert not found, (name, found)


def test_a_run_that_grows_is_on_the_hub_as_a_plain_gpt2(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    run = Run(tmp_path / "grows", GROWS)
    done = trained(warm, run)
    history = hub.store.repositories["me/grows"].history()
    titles = [commit.title for commit in history]
    assert titles[0] == "End of training" and titles[-1] == "initial commit" and len(titles) >= 3
    assert all(re.fullmatch(r"Training in progress, step \d+", title) for title in titles[1:-1])
    assert all(set(commit.files) == PLAIN for commit in history[:-1]), "every commit is whole"
    assert "not pushed" not in done.said

    last = history[0]
    found = logits(warm, tmp_path / "logits.json", "me/grows")
    assert torch.equal(found["me/grows"], torch.tensor(run.results()["logits"]))
    events = [json.loads(line) for line in text(last, "journal.jsonl").splitlines()]
    assert [event["event"] for event in events if event["event"] != "evaluation"] == [
        *("start", "operation", "operation", "end")
    ]
    (tmp_path / "schedule.yaml").write_text(text(last, "schedule.yaml"))
    assert Schedule.load(tmp_path / "schedule.yaml") == Schedule.of(GROWS)
    card: Any = ModelCard(text(last, "README.md"))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert (
        "morphing_trainer" in (card.data.tags or []) and "2 operations" in card.text and "stack_layers 2" in card.text
    )
    assert "middle of training, after step 4 of 12" in text(history[-2], "README.md")
    assert "middle of training" not in card.text
    check_clean(hub, run.folder)
    assert not list(run.folder.glob(".morph-p*"))


def test_a_hub_that_fails_changes_nothing_of_the_run(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """The same bits as without pushing; one warning; the model on disk; and what to do, which then works."""
    dropout = {"max_grad_norm": 0.5, "logging_steps": 2}
    quiet = Run(tmp_path / "quiet", GROWS, {**dropout, "push_to_hub": False})
    trained(warm, quiet, None)
    hub.faults += [Fault("/commit/", read=10, times=4), Fault("/commit/", status=413)]
    run = Run(tmp_path / "loud", GROWS, dropout)
    done = trained(warm, run)
    assert run.results() == quiet.results()
    ours, theirs = (load_file(each.folder.with_suffix(".safetensors")) for each in (run, quiet))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    told = re.findall(r"step \d+: not pushed to the Hub: .*", done.said)
    assert len(told) == 1 and "It is tried again at the next save and at the end." in told[0], done.said
    advice = f"Push it later by: morph push {run.folder} --repo_id me/loud"
    assert advice in done.said and (run.folder / "model/model.safetensors").is_file()
    assert [commit.title for commit in hub.store.repositories["me/loud"].history()] == ["initial commit"]

    hub.faults.clear()
    done = warm.run(command, "push", str(run.folder), "--repo_id", "me/loud", HF_TOKEN=WRITES)
    assert done.code == 0 and set(newest(hub, "me/loud").files) == PLAIN, done.said
    found = logits(warm, tmp_path / "logits.json", "me/loud")
    assert torch.equal(found["me/loud"], torch.tensor(run.results()["logits"]))


def test_a_connection_that_is_lost_in_the_middle(
    hub: HubServer, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of the weights, of the request for the commit, of its answer: all is sent again; one commit is made."""
    monkeypatch.setattr(routes, "PART", 16_384)
    hub.faults += [
        Fault(r"PUT /lfs/.*/1$", times=1, read=4000),
        Fault("/commit/", times=1, read=500),
        Fault("/commit/", times=1, unheard=True),
    ]
    run = Run(tmp_path / "lost", GROWS, END)
    done = trained(warm, run)
    assert "not pushed" not in done.said and "not on the Hub" not in done.said
    assert [commit.title for commit in hub.store.repositories["me/lost"].history()] == [
        "End of training",
        "initial commit",
    ]
    assert len(hub.asked("PUT /lfs/.*/1$")) == 2 and len(hub.asked("PUT /lfs/.*/3$")) == 1
    assert len(hub.asked("POST .*/commit/")) == 2, "lost once on the way, once on the way back; then it was there"
    assert set(newest(hub, "me/lost").files) == PLAIN
    assert not hub.faults[0].times + hub.faults[1].times + hub.faults[2].times


def test_a_push_that_fails_leaves_the_earlier_revision_whole(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    run = Run(tmp_path / "whole", GROWS, {"hub_always_push": True}, then="")
    trained(warm, run)
    before = newest(hub, "me/whole")
    hub.faults.append(Fault("/commit/", status=503))
    again = Run(run.folder, GROWS, {"max_steps": 16}, then="", resume=True)
    done = trained(warm, again)
    assert newest(hub, "me/whole") is before and "not pushed to the Hub" in done.said
    hub.faults.clear()
    more = Run(run.folder, GROWS, {"max_steps": 20}, then="", resume=True)
    trained(warm, more)
    after = newest(hub, "me/whole")
    assert after.title == "Training in progress, step 20"
    assert after.parent == before.sha, [commit.title for commit in hub.store.repositories["me/whole"].history()]
    found = logits(warm, tmp_path / "logits.json", "me/whole")
    assert torch.equal(found["me/whole"], torch.tensor(more.results()["logits"]))


def test_adapters_are_merged_or_pushed_with_their_base(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """In the middle of training too; the second run goes where the first has been, and nothing of it stays there."""
    lora = LoraArguments(lora_r=2, lora_target_modules=["c_attn", "c_fc"])
    merges = [{"name": "merge_lora_weights", "max_wait_iters": 3}]
    beside = Run(tmp_path / "lora", merges, {"save_merged": False, "hub_always_push": True}, lora=lora)
    trained(warm, beside)
    commits = hub.store.repositories["me/lora"].history()[:-1]
    assert len(commits) == 4 and all(set(commit.files) == PLAIN | ADAPTERS for commit in commits)
    card: Any = ModelCard(text(commits[0], "README.md"))
    assert card.data.library_name == "peft" and "lora" in (card.data.tags or []) and "rank 2 on 4 modules" in card.text
    assert json.loads(text(commits[0], "adapter_config.json"))["base_model_name_or_path"] == "me/lora"
    expected = torch.tensor(beside.results()["logits"])
    for work in (load_as_anybody, load):
        found = logits(warm, tmp_path / "logits.json", "me/lora", work=work)
        torch.testing.assert_close(found["me/lora"], expected, rtol=1e-5, atol=1e-6)

    options = {"hub_always_push": True, "hub_model_id": "lora", "overwrite_output_dir": True}
    merged = Run(beside.folder, merges, options, lora=lora)
    trained(warm, merged)
    commits = hub.store.repositories["me/lora"].history()[:4]
    assert all(set(commit.files) == PLAIN for commit in commits), "adapters would be put onto the merged model"
    card = ModelCard(text(commits[0], "README.md"))
    assert card.data.library_name == "transformers"
    expected = torch.tensor(merged.results()["logits"])
    found = logits(warm, tmp_path / "logits.json", "me/lora")
    torch.testing.assert_close(found["me/lora"], expected, rtol=1e-5, atol=1e-5)
    check_clean(hub, merged.folder)


def test_a_private_repository(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    trained(warm, Run(tmp_path / "secret", GROWS, {**END, "hub_private_repo": True, "hub_token": WRITES}), token=None)
    assert hub.store.repositories["me/secret"].private
    said = logits(warm, tmp_path / "a.json", "me/secret", work=load)["me/secret"]
    assert "no such model on http" in said and "if it is private" in said
    found = logits(warm, tmp_path / "b.json", "me/secret", token=WRITES)
    assert isinstance(found["me/secret"], torch.Tensor)
    check_clean(hub, tmp_path / "secret")
    for path in (tmp_path / "secret").rglob("*"):
        assert not path.is_file() or WRITES.encode() not in path.read_bytes(), path


def test_users_of_trainer_push_as_they_are_used_to(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    given = {"tags": "fables", "license": "mit", "language": "en", "model_name": "Fables", "revision": "fables"}
    run = Run(tmp_path / "users", GROWS, {**END, "push_to_hub": False}, then="push", given=given)
    trained(warm, run)
    commit = newest(hub, "me/users", "fables")
    assert commit.sha == run.results()["pushed"] and commit.title == "End of training" and set(commit.files) == PLAIN
    assert set(newest(hub, "me/users").files) == {".gitattributes"}
    card: Any = ModelCard(text(commit, "README.md"))
    assert card.data.license == "mit" and "fables" in (card.data.tags or []) and card.data.language == ["en"]
    assert "# Fables" in card.text

    run = Run(tmp_path / "later", GROWS, {**END, "push_to_hub": False}, then="push later", given={"license": "mit"})
    trained(warm, run)
    assert newest(hub, "me/later").sha == run.results()["pushed"]
    assert text(newest(hub, "me/later"), "README.md") == (run.folder / "README.md").read_text()
    wrong = Run(tmp_path / "wrong", GROWS, {**END, "push_to_hub": False}, then="push", given={"licence": "mit"})
    assert "TypeError: push_to_hub: knows no 'licence'" in warm.run(train, wrong, HF_TOKEN=WRITES).said


def test_a_run_that_began_with_a_model_of_the_hub(hub: HubServer, warm: Warm, tmp_path: Path) -> None:
    """By its name; the licence is the one that its card says; the data are named by who gives them."""
    card = "---\nlicense: apache-2.0\n---\n# Base\n"
    trained(warm, Run(tmp_path / "base", [], END))
    files = {name: blob.content for name, blob in newest(hub, "me/base").files.items()}
    hub.store.create("library/base", files={**files, "README.md": card.encode()})
    trained(warm, Run(tmp_path / "child", GROWS, END, base="library/base"))
    data = yaml.safe_load(text(newest(hub, "me/child"), "README.md").split("---")[1])
    assert data["base_model"] == "library/base" and data["license"] == "apache-2.0"
    assert data["base_model_relation"] == "finetune"
    assert "[library/base]" in text(newest(hub, "me/child"), "README.md")
