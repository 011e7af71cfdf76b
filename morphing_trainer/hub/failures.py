"""What the Hub's client raises, in a sentence: whether another attempt may help, and never with a token in it."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from morphing_trainer.data.hub import first_line
from morphing_trainer.errors import HubError
from morphing_trainer.hub.privacy import anonymous

_PASSING = frozenset({408, 409, 412, 413, 425, 429, 500, 502, 503, 504})
"""Answers that another attempt, now or later, may not get."""
_WORDS = {
    401: "the token is not valid",
    403: "the token may not write there",
    404: "there is no such repository, or the token may not see it",
    412: "somebody else has pushed at the same moment",
    413: "it is more than the Hub takes",
    429: "the Hub asks for fewer requests",
}


def status_of(error: BaseException) -> int | None:
    """The answer's code, of an error that came of one, or of whatever it came of."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HfHubHTTPError) and seen.response is not None:
            return int(seen.response.status_code)
        seen = seen.__cause__ or seen.__context__
    return None


def is_passing(error: BaseException) -> bool:
    """Whether another attempt may succeed: a server that is down or busy, a connection that was lost."""
    if isinstance(error, HubError | OfflineModeIsEnabled | HFValidationError | LocalTokenNotFoundError):
        return isinstance(error, HubError) and error.passing
    status = status_of(error)
    return status in _PASSING or (status is None and not isinstance(error, ValueError | TypeError | FileNotFoundError))


def told(error: BaseException) -> str:
    """What has gone wrong, on one line."""
    if isinstance(error, HubError):
        return str(error)
    status = status_of(error)
    if status is None:
        deepest = error
        while deepest.__cause__ is not None:
            deepest = deepest.__cause__
        return anonymous(f"{constants.ENDPOINT}: {first_line(deepest)}")
    said = next((line for line in str(error).splitlines()[1:] if line.strip()), "")
    server = getattr(error, "server_message", None) or said
    words = _WORDS.get(status, "the Hub does not answer as it should" if status >= 500 else "the Hub refuses")
    detail = f": {first_line(RuntimeError(server))}" if server else ""
    return anonymous(f"{words} ({status}{detail})")
