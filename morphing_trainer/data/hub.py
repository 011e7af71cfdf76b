"""Telling a name that does not exist on the Hub from a Hub that cannot be reached, quickly."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_session

PROBE_SECONDS = 10.0


def hub_problem() -> str | None:
    """Why the Hub cannot be reached, or None if it answers.

    The Hub's own client retries each request for 23 seconds before it says so; one request without retries is enough
    for an answer of any kind. Proxies, a mirror (`HF_ENDPOINT`) and offline mode (`HF_HUB_OFFLINE`) are respected.
    """
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the client's exception types depend on the HTTP library it was built with
        return f"{constants.ENDPOINT}: {first_line(error)}"
    return None


def looks_local(name: str) -> bool:
    """Whether `name` means a folder: it exists as one, or is written in a way that no Hub id is."""
    try:
        is_folder = Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path, or a NUL byte in it
        is_folder = False
    return is_folder or name.startswith(("/", "./", "../", "~", ".\\")) or name.count("/") > 1


def first_line(error: BaseException) -> str:
    """What an error of another library says, fit for use within one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
