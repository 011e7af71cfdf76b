"""A Trainer that pushes to the Hub: each state as one commit, beside the training, which no failure of it disturbs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from morphing_trainer.errors import HubError, MorphError
from morphing_trainer.hub.account import Wish
from morphing_trainer.hub.card import card
from morphing_trainer.hub.packing import live_facts
from morphing_trainer.hub.parcel import CARD
from morphing_trainer.hub.publisher import Publisher, habits_of, wish_of
from morphing_trainer.hub.sending import Sent
from morphing_trainer.hub.told import tell
from morphing_trainer.layers.exporting import ExportingTrainer
from morphing_trainer.run.consensus import Consensus
from morphing_trainer.run.folder import MODEL
from morphing_trainer.run.session import Session

_log = logging.getLogger("morphing_trainer")

GRACE = 20.0
"""Seconds for which a run that was told to stop waits for a push that is going on."""


SAID = frozenset(
    {"language", "license", "tags", "model_name", "finetuned_from", "tasks", "dataset_tags", "dataset", "dataset_args"}
)
"""What `create_model_card` takes."""


class PublishingTrainer(ExportingTrainer):
    """How `MorphingTrainer` pushes. Rank 0 alone talks to the Hub, and no rank waits for it but at the beginning."""

    session: Session | None
    _publisher: Publisher | None = None

    # ---- Before the training ---------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, or see that it may be pushed to; all ranks together.

        Raises:
            HubError: there is no token, it is not valid or may not write, the repository holds something else, or the
                Hub cannot be reached. A run that is resumed goes on without it.
            RankError: on the other ranks, then.
        """
        failure: Exception | None = None
        if self.is_world_process_zero():
            publisher = self._publishing()
            try:
                self._arrive(self._wish(token, private))
            except MorphError as error:
                if isinstance(error, HubError) and error.passing and publisher.was_begun:
                    _log.warning("%s The run goes on; what it saves is pushed when the Hub can be reached.", error)
                else:
                    failure = error
        Consensus().settle(failure)

    def _publishing(self) -> Publisher:
        if self._publisher is None:
            self._publisher = Publisher(self.run_folder, self._wish(), habits_of(self.args))
        return self._publisher

    def _wish(self, token: str | None = None, private: bool | None = None, revision: str | None = None) -> Wish:
        return wish_of(self.args, token, private, revision)

    def _arrive(self, wish: Wish) -> None:
        self.hub_model_id = self._publishing().arrive(wish).id  # type: ignore[assignment]
        self.push_in_progress = None

    # ---- While it trains, and at its end ---------------------------------------------------------------------------

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what a checkpoint holds, beside the training. Not while another push goes on, but `hub_always_push`."""
        if self.is_world_process_zero() and self._publishing().add(Path(checkpoint_folder), self.state.global_step):
            self.callback_handler.on_push_begin(self.args, self.state, self.control)

    def _finish_current_push(self) -> None:
        """Wait for pushes that go on; one that has failed is tried once more. A run told to stop waits less."""
        if self._publisher is None or not self.is_world_process_zero():
            return
        session = getattr(self, "session", None)
        stopping = session is not None and session.stopping
        if not self._publisher.finish(GRACE if stopping else None):
            advice = self._publisher.advice()
            _log.warning("The push to the Hub is not waited for, as the run was told to stop. %s", advice)

    def save_whole(self, folder: Path) -> None:
        """As inherited, and pushed under `push_to_hub`. If that fails the model is on disk, and a warning says so."""
        super().save_whole(folder)
        if self.args.push_to_hub:
            self._push_or_warn("End of training", folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As inherited, and pushed under `push_to_hub`, where a failure is a warning."""
        super().save_model(output_dir, _internal_call=True)
        if self.args.push_to_hub and not _internal_call and self._home is None:
            super().save_whole(self.run_folder / MODEL)
            self._push_or_warn("Model save", self.run_folder / MODEL)

    def _push_or_warn(self, message: str, folder: Path) -> None:
        if not self.is_world_process_zero():
            return
        publisher = self._publishing()
        try:
            self._finish_current_push()
            sent = publisher.push(message, folder)
            _log.info("%s %s", "pushed to" if sent.changed else "nothing new to push to", sent.url)
        except MorphError as error:
            reason = str(error).rstrip(".")
            _log.warning("%s is on disk, but not on the Hub: %s. %s", folder, reason, publisher.advice())

    @property
    def pushed(self) -> Sent | None:
        """The last push that got through; on the main process."""
        return self._publisher.sent if self._publisher is not None else None

    # ---- As users of Trainer ask for it ----------------------------------------------------------------------------

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model as the run's `model` folder, and push it with its card, the journal and the schedule.

        Args:
            blocking: otherwise a `Future` is returned at once.
            kwargs: those of `create_model_card`.

        Returns:
            The `CommitInfo`, or a `Future` of it; None on other processes than the main one.

        Raises:
            HubError: if it did not get through; on the main process only.
        """
        if strangers := sorted(set(kwargs) - SAID):
            raise TypeError(f"push_to_hub: knows no {strangers[0]!r}; what a card may say is {', '.join(sorted(SAID))}")
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        super().save_whole(self.run_folder / MODEL)
        if not self.is_world_process_zero():
            return None
        tags = kwargs.get("tags") or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        kwargs["tags"] = [*tags, *(getattr(self.model, "model_tags", None) or [])]
        message, publisher = commit_message or "End of training", self._publishing()
        self._finish_current_push()
        self._arrive(self._wish(token, private, revision))

        def push() -> CommitInfo:
            sent = publisher.push(message, self.run_folder / MODEL, kwargs)
            return CommitInfo(commit_url=sent.url, commit_message=message, commit_description="", oid=sent.commit)

        return push() if blocking else publisher.arrive().api.run_as_future(push)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card as `README.md` into `args.output_dir`. What is given comes before what the run knows."""
        if not self.is_world_process_zero():
            return
        given = {"language": language, "license": license, "tags": tags, "model_name": model_name, "tasks": tasks}
        given |= {"finetuned_from": finetuned_from, "dataset_tags": dataset_tags}
        given |= {"dataset": dataset, "dataset_args": dataset_args}
        told = tell(live_facts(self.bare_model, merged=self.args.save_merged), self.run_folder)
        name = self.hub_model_id or self._wish().name
        self.run_folder.mkdir(parents=True, exist_ok=True)
        (self.run_folder / CARD).write_text(card(told, name, **given), encoding="utf-8")
