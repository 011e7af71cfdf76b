"""The metrics that can be asked for by name."""

from __future__ import annotations

from collections.abc import Sequence

from morphing_trainer.errors import ConfigError, suggest

METRICS = ("perplexity", "token_accuracy", "word_accuracy")


def metric_names(given: str | Sequence[str] | None) -> list[str] | None:
    """`given` as a list of names; `none` is no metric, and None stays None.

    Raises:
        ConfigError: for a name that is no metric's.
    """
    if given is None:
        return None
    names = [given] if isinstance(given, str) else list(given)
    if names == ["none"]:
        return []
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"eval_metrics: there is no metric {name!r}{suggest(name, [*METRICS, 'none'])}")
    return names
