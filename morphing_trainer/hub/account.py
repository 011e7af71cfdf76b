"""Who pushes, and where to: looked at before time is spent on a model that nobody may push."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from morphing_trainer.data.hub import hub_problem
from morphing_trainer.errors import HubError
from morphing_trainer.hub.failures import is_passing, status_of, told
from morphing_trainer.hub.quiet import patient

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Wish:
    """Where somebody wants to push.

    Attributes:
        name: of the repository; without an owner it is the token's.
        private: what it is to be if it is made now; True also refuses one that is public.
        revision: a branch; None is the main one.
        token: None is the one that the machine is logged in with.
        where: what the name was given by, for messages.
        trains: it is asked for a training, which could do without.
    """

    name: str
    private: bool | None = None
    revision: str | None = None
    token: str | None = None
    where: str = "hub_model_id"
    trains: bool = True

    @property
    def asked_by(self) -> str:
        """What asks for a push, for messages."""
        return "push_to_hub" if self.trains else "morph push"


@dataclass(frozen=True)
class Place:
    """A repository that may be written to: `id` with its owner, and the branch."""

    api: HfApi
    id: str
    revision: str
    private: bool
    user: str

    @property
    def url(self) -> str:
        return f"{constants.ENDPOINT}/{self.id}" + ("" if self.revision == "main" else f"/tree/{self.revision}")


def arrived(wish: Wish, *, create: bool = True) -> Place:
    """The place that is wished for, made if it is not there.

    Args:
        create: otherwise nothing is made, and a repository that is not there is taken for an empty one.

    Raises:
        HubError: no token, one that is not valid or may not write there, a name that cannot be, a public repository
            where a private one is asked for, or a Hub that cannot be reached.
    """
    token = _token(wish)
    check_name(wish)
    if problem := hub_problem():
        instead = " Leave push_to_hub out and push the run later by `morph push RUN`, or try again."
        raise HubError(
            f"{wish.asked_by}: the Hub cannot be reached ({problem}).{instead if wish.trains else ''}",
            passing=not constants.is_offline_mode(),
        )
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with patient():
        try:
            return _arrived(wish, api, create)
        except HubError:
            raise
        except Exception as error:  # of the client, whose types depend on the HTTP library it was built with
            raise HubError(
                f"{wish.where}: {wish.name!r} cannot be pushed to: {told(error)}.", passing=is_passing(error)
            ) from error


def _arrived(wish: Wish, api: HfApi, create: bool) -> Place:
    me = _whoami(wish, api)
    user = str(me["name"])
    name = wish.name if "/" in wish.name else f"{user}/{wish.name}"
    if (me.get("auth") or {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"{wish.asked_by}: the token (of {user}) may read only. Make one that may write at "
            f"{constants.ENDPOINT}/settings/tokens, and log in with it by `hf auth login`, or give it in HF_TOKEN."
        )
    if create:
        try:
            api.create_repo(name, private=wish.private, exist_ok=True)
        except HfHubHTTPError as error:
            if status_of(error) in (401, 403):
                raise _foreign(wish, name, user, error) from error
            raise
    try:
        private = bool(api.repo_info(name).private)
    except HfHubHTTPError as error:
        if status_of(error) != 404 or create:
            raise
        if name.partition("/")[0] not in _writable(me):
            raise _foreign(wish, name, user, error) from error
        return Place(api, name, wish.revision or "main", bool(wish.private), user)
    if wish.private and not private:
        raise HubError(
            f"{wish.where}: {name} is there and is public, and a private one is asked for. Make it private in its "
            f"settings ({constants.ENDPOINT}/{name}/settings), or give another name."
        )
    try:
        api.auth_check(name, write=True)
    except TypeError:  # a client of before there was this question: the first push will tell
        pass
    except HfHubHTTPError as error:
        if status_of(error) in (401, 403):  # any other answer is one of a Hub that does not know it either
            raise _foreign(wish, name, user, error) from error
    return Place(api, name, _branch(wish, api, name, create), private, user)


def _token(wish: Wish) -> str:
    token = wish.token or get_token()
    if not token:
        instead = " Without push_to_hub the run is on disk only, and `morph push RUN` pushes it later."
        raise HubError(
            f"{wish.asked_by}: there is no token. Log in by `hf auth login`, or set HF_TOKEN; a token that may write "
            f"is made at {constants.ENDPOINT}/settings/tokens.{instead if wish.trains else ''}"
        )
    return token


def check_name(wish: Wish) -> None:
    """Raises HubError for a repository or a branch that cannot be called so."""
    try:
        validate_repo_id(wish.name)
        if wish.name.count("/") > 1:
            raise HFValidationError("it has more than one '/'")
    except HFValidationError as error:
        raise HubError(
            f"{wish.where}: {wish.name!r} cannot be a repository's name: letters, digits, '-', '_' and '.', 96 at "
            "most; give NAME or OWNER/NAME."
        ) from error
    if wish.revision is not None and _COMMIT.fullmatch(wish.revision):
        raise HubError(
            f"hub_revision: {wish.revision} is a commit, and nothing can be pushed onto one; give a branch's name."
        )


def _whoami(wish: Wish, api: HfApi) -> dict[str, Any]:
    try:
        me: dict[str, Any] = api.whoami()
        return me
    except HfHubHTTPError as error:
        if status_of(error) == 401:
            raise HubError(
                f"{wish.asked_by}: {constants.ENDPOINT} does not know the token. Log in again by `hf auth login`, or "
                f"check HF_TOKEN{' and hub_token' if wish.trains else ''}; a token is made at "
                f"{constants.ENDPOINT}/settings/tokens."
            ) from error
        raise


def _foreign(wish: Wish, name: str, user: str, error: HfHubHTTPError) -> HubError:
    whose = name.partition("/")[0]
    what = f"{name} is not {user}'s to write to" if whose != user else f"the token (of {user}) may not write to {name}"
    own = f"{user}/{name.partition('/')[2]}"
    instead = "give a token that may"
    if whose != user:
        instead = f"give {own}, or ask the owner of {whose} for the right to write"
    return HubError(f"{wish.where}: {what} ({told(error)}); {instead}.")


def _writable(me: dict[str, Any]) -> set[str]:
    """Namespaces in which somebody may make repositories, as far as the Hub says."""
    orgs = [org for org in me.get("orgs") or [] if isinstance(org, dict) and org.get("roleInOrg") != "read"]
    return {str(me["name"]), *(str(org.get("name")) for org in orgs)}


def _branch(wish: Wish, api: HfApi, name: str, create: bool) -> str:
    """The branch, which is made from the main one if it is not there."""
    branch = wish.revision or "main"
    if branch == "main" or branch.startswith("refs/"):
        return branch
    if create:
        api.create_branch(name, branch=branch, exist_ok=True)
    return branch
