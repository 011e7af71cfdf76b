"""The pushes of one run, on the process that makes them: where to, what is under way, and what is still owed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from morphing_trainer.errors import HubError
from morphing_trainer.hub import staging
from morphing_trainer.hub.account import Place, Wish, arrived
from morphing_trainer.hub.outbox import Outbox
from morphing_trainer.hub.packing import begun_of, pack
from morphing_trainer.hub.parcel import Parcel
from morphing_trainer.hub.sending import Sent, check_free, holding, send

_log = logging.getLogger("morphing_trainer")


@dataclass(frozen=True)
class Habits:
    """What a run was told of pushing.

    Attributes:
        strategy: `hub_strategy`.
        always: `hub_always_push`.
        merged: adapters are merged.
        overwrites: another run that is there makes way.
        resumed: the checkpoint that it goes on from.
    """

    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = "every_save"
    always: bool = False
    merged: bool = True
    overwrites: bool = False
    resumed: str | bool | None = None


class Publisher:
    """Pushes states of a run, while it trains in a thread, and afterwards.

    Attributes:
        wish: where to push.
        place: the same, once it has been seen that it may be pushed to.
        sent: the last push that got through.
    """

    def __init__(self, run: Path, wish: Wish, habits: Habits) -> None:
        self.wish = wish
        self.place: Place | None = None
        self.sent: Sent | None = None
        self._run, self._habits, self._outbox = run, habits, Outbox()
        self._owed: dict[str, Path] = {}
        """Checkpoints that are still to be pushed: name -> their files, kept."""
        self._latest: tuple[str, Path] | None = None
        """The newest state that has not got through: its name, and its files."""

    def arrive(self, wish: Wish | None = None) -> Place:
        """The place to push to; looked at once, and again for another wish.

        Raises:
            HubError: if it may not be pushed to.
        """
        if wish is not None and wish != self.wish:
            self.wish, self.place = wish, None
        if self.place is None:
            place = arrived(self.wish)
            begun = begun_of(self._run, self._habits.resumed)
            check_free(place, holding(place), begun, replaces=self._habits.overwrites)
            self.place = place
        return self.place

    @property
    def was_begun(self) -> bool:
        """Whether the run was begun before: it must not end because the Hub is away."""
        return begun_of(self._run, self._habits.resumed) is not None and not self._habits.overwrites

    def advice(self) -> str:
        """How to push later."""
        name = self.place.id if self.place else self.wish.name
        options = f" --repo_id {name}" + (" --private" if self.wish.private else "")
        options += f" --revision {self.wish.revision}" if self.wish.revision else ""
        return f"Push it later by: morph push {self._run}{options}"

    # ---- While it trains -------------------------------------------------------------------------------------------

    def add(self, checkpoint: Path, step: int) -> bool:
        """Push what a checkpoint holds, in the thread. Not while a push goes on, but under `always`.

        Returns whether it is going to be.
        """
        every = self._habits.strategy == "all_checkpoints"
        waits = self._outbox.busy and not self._habits.always
        if self._habits.strategy == "end" or (waits and not every):
            return False
        try:
            if self._latest is None and not self._owed and not self._outbox.busy:
                staging.sweep(self._run)
            kept = staging.keep(checkpoint)
        except OSError as error:
            _log.warning("%s: not pushed to the Hub: its files cannot be kept for it (%s).", checkpoint.name, error)
            return False
        if every:
            self._owed[checkpoint.name] = kept
        if not waits:
            self._outbox.add(f"step {step}", partial(self._push_kept, checkpoint.name, kept))
        return not waits

    def _push_kept(self, name: str, kept: Path) -> Sent:
        """In the thread: push a state whose files are kept; what is owed from before it goes along."""
        before, self._latest = self._latest, (name, kept)
        if before is not None and before[1] != kept and before[0] not in self._owed:
            staging.drop(before[1])
        owed = self._owed_until(name)  # what was saved later has its own turn, and needs its files then
        checkpoints = {"last-checkpoint": kept} if self._habits.strategy == "checkpoint" else owed
        place = self.arrive()
        options = {"merged": self._habits.merged, "checkpoints": checkpoints, "api": place.api}
        with pack(place.id, kept, self._run, saved=kept, **options) as parcel:  # type: ignore[arg-type]
            sent = self._send(place, parcel, f"Training in progress, step {name.removeprefix('checkpoint-')}")
        self._latest = None
        self._paid(owed)
        staging.drop(kept)
        return sent

    def finish(self, grace: float | None = None) -> bool:
        """Wait for pushes that go on; what has failed, or is owed, is tried once more. Returns whether none goes on.

        Args:
            grace: seconds to wait at most, with no other attempt.
        """
        if not self._outbox.wait(grace):
            return False
        left = list(self._owed.items())[-1:]  # a save that was passed over
        if self._latest is not None:
            left = [self._latest]
        if left and grace is None:
            name, kept = left[0]
            self._outbox.add(name, partial(self._push_kept, name, kept))
            self._outbox.wait()
        return True

    # ---- After it --------------------------------------------------------------------------------------------------

    def push(self, message: str, folder: Path, given: Mapping[str, Any] | None = None) -> Sent:
        """Push a model that was saved in `folder`, with the run as it is, and what is owed.

        Raises:
            MorphError: if it did not get through.
        """
        place, owed = self.arrive(), dict(self._owed)
        with pack(place.id, folder, self._run, checkpoints=owed, given=given, api=place.api) as parcel:
            sent = self._send(place, parcel, message)
        self._paid(owed)
        if self._latest is not None:  # older than what is there now
            staging.drop(self._latest[1])
            self._latest = None
        return sent

    def _send(self, place: Place, parcel: Parcel, message: str) -> Sent:
        """Another run makes way for the first push of one that was to overwrite it, and for that only."""
        replaces = self._habits.overwrites and self.sent is None
        known = self.sent.commit if self.sent else None
        self.sent = send(place, parcel, message, replaces=replaces, known=known)
        return self.sent

    def _owed_until(self, name: str) -> dict[str, Path]:
        """Checkpoints that are owed, up to one of them."""
        owed = list(self._owed.items())
        names = [each for each, _ in owed]
        return dict(owed[: names.index(name) + 1]) if name in names else {}

    def _paid(self, owed: Mapping[str, Path]) -> None:
        for name, kept in owed.items():
            self._owed.pop(name, None)
            staging.drop(kept)


def wish_of(args: Any, token: str | None = None, private: bool | None = None, revision: str | None = None) -> Wish:
    """Where training arguments say to push; what is given comes before them."""
    return Wish(
        name=args.hub_model_id or Path(str(args.output_dir)).absolute().name,
        private=args.hub_private_repo if private is None else private,
        revision=revision or args.hub_revision,
        token=token or args.hub_token,
        where="hub_model_id" if args.hub_model_id else "push_to_hub",
    )


def habits_of(args: Any) -> Habits:
    """How training arguments say to push."""
    resumed = args.resume_from_checkpoint
    return Habits(
        strategy=str(getattr(args.hub_strategy, "value", args.hub_strategy)),  # type: ignore[arg-type]
        always=bool(args.hub_always_push),
        merged=bool(args.save_merged),
        overwrites=bool(args.overwrite_output_dir) and not _goes_on(Path(str(args.output_dir)), resumed),
        resumed=resumed,
    )


def check_push(args: Any) -> None:
    """Refuse, before the data are prepared, what could not be pushed; nothing is made on the Hub.

    Raises:
        HubError: as `Publisher.arrive`, but for a Hub that is away: that may have passed by then.
    """
    wish, habits, run = wish_of(args), habits_of(args), Path(str(args.output_dir))
    try:
        place = arrived(wish, create=False)
        check_free(place, holding(place), begun_of(run, habits.resumed), replaces=habits.overwrites)
    except HubError as error:
        if not error.passing:
            raise


def _goes_on(run: Path, resumed: str | bool | None) -> bool:
    """Whether a run that is given `resume_from_checkpoint` finds one."""
    if resumed in (None, False, "false"):
        return False
    return any(run.glob("checkpoint-*")) or (isinstance(resumed, str) and Path(resumed).is_dir())
