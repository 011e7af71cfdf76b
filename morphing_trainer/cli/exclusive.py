"""Arguments that say one thing in two ways: the later source's way wins, and side by side they are refused."""

from __future__ import annotations

from collections.abc import Mapping

from morphing_trainer.cli.groups import Given
from morphing_trainer.errors import Problem

WAYS = (
    (("batch_size", "mini_batch_size"), ("per_device_train_batch_size", "gradient_accumulation_steps")),
    (("optimizer",), ("optim",)),
    (("optimizer_warmup_steps",), ("optimizer_warmup_fraction",)),
)


def one_way(given: Mapping[str, Given]) -> tuple[dict[str, Given], list[Problem]]:
    """`given` without what a later source says in the other way, and what one source says in both.

    So `--batch_size 16` replaces the `per_device_train_batch_size` of a config file.
    """
    left, problems = dict(given), []
    for ways in WAYS:
        found = [[name for name in way if name in given and given[name].value is not None] for way in ways]
        if not all(found):
            continue
        ranks = [max(given[name].rank for name in names) for names in found]
        if ranks[0] == ranks[1]:
            (first, *_), (second, *_) = found
            what = f"stands beside {first} ({given[first].where}), which says the same in another way; remove one"
            problems.append(Problem(given[second].where, f"{second}: {what}"))
            continue
        for name in found[ranks.index(min(ranks))]:
            del left[name]
    return left, problems
