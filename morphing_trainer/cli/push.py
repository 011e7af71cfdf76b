"""`morph push RUN`: the model of a run on the Hub, with its card, its journal and its schedule."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from morphing_trainer.hub.parcel import Parcel
    from morphing_trainer.hub.sending import Sent

_EPILOG = """\
what is pushed:
  The model that the run has saved at its end, or, of a run that has not come to it, of its newest whole checkpoint:
  plain, with adapters merged, or base and adapters if the run was told --save_merged false. With it its tokenizer, a
  model card (README.md), journal.jsonl and schedule.yaml. No optimizer, no paths of this machine, no token.
  All of it is one commit: what was there before stays whole until the new one is.

where to:
  OWNER/NAME, or NAME of your own. It is made if it is not there. One that holds another run is left as it is, unless
  --overwrite is given; one that holds something else always is. Earlier commits stay in the history.

token:
  The one of `hf auth login`, or of HF_TOKEN; it must be one that may write. HF_ENDPOINT names another Hub.

examples:
  morph push runs/demo --dry_run                           what would go, and the card; nothing is sent
  morph push runs/demo --repo_id me/grown-gpt2 --private
  morph push runs/demo/checkpoint-400 --revision step-400  one of its checkpoints, on a branch of its own

exit codes: 0 it is there; 1 the Hub could not be reached or was busy, try again; 2 bad input, or the Hub refused
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Push; returns the exit code (bad input raises a `MorphError`)."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    from morphing_trainer.errors import HubError
    from morphing_trainer.hub.account import Wish, arrived, check_name
    from morphing_trainer.hub.finding import find
    from morphing_trainer.hub.packing import pack
    from morphing_trainer.hub.sending import send
    from morphing_trainer.reporting.console import is_terminal

    found = find(options.run)
    private = True if options.private else found.arguments.get("hub_private_repo")
    revision = options.revision or found.arguments.get("hub_revision")
    where = "--repo_id" if options.repo_id else "morph push"
    wish = Wish(options.repo_id or found.name, private, revision, where=where, trains=False)
    what = partial(pack, folder=found.folder, run=found.run, saved=found.saved, merged=found.merged)
    if options.dry_run:
        check_name(wish)
        with what(wish.name) as parcel:
            _show(parcel, wish.name, as_json=options.json)
        return 0
    try:
        place = arrived(wish)
        with what(place.id, api=place.api) as parcel:
            message = options.message or _message(found.folder.name)
            shows = is_terminal() and not options.json
            sent = send(place, parcel, message, replaces=options.overwrite, shows=shows)
    except HubError as error:
        if not error.passing:
            raise
        print(f"error: {str(error).rstrip('.')}. Nothing of it is lost; try again later.", file=sys.stderr)
        return 1
    _tell(sent, as_json=options.json)
    return 0


def _message(name: str) -> str:
    return f"The model at step {name.removeprefix('checkpoint-')}" if name.startswith("checkpoint-") else "The model"


def _show(parcel: Parcel, repo: str, *, as_json: bool) -> None:
    from morphing_trainer.hub.parcel import CARD

    content = parcel.files[CARD]
    card = content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")
    if as_json:
        print(json.dumps({"repo": repo, "files": parcel.sizes, "card": card}, indent=1))
        return
    print(f"Would be pushed to {repo}:\n")
    print("\n".join(_listed(parcel.sizes)))
    print(f"\n{CARD}:\n\n{card}", end="")


def _tell(sent: Sent, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(sent), indent=1))
        return
    if not sent.changed:
        print(f"nothing to push: {sent.repo} holds all of it already\n{sent.url}")
        return
    print("\n".join(_listed(sent.files)))
    if sent.removed:
        print(f"removed: {', '.join(sent.removed)}")
    print(f"pushed to {sent.repo}{'' if sent.revision == 'main' else f' ({sent.revision})'}\n{sent.url}")


def _listed(sizes: Mapping[str, int]) -> list[str]:
    width = max(map(len, sizes), default=0)
    return [f"  {name:{width}}  {_bytes(size):>8}" for name, size in sizes.items()]


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="morph push",
        description="Push the model of a run to the Hub, as a plain GPT-2 that anybody can load, with a model card.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run (its output_dir), or one of its checkpoints")
    parser.add_argument(
        "--repo_id", metavar="NAME", help="NAME or OWNER/NAME. Default: hub_model_id of the run, else its folder's name"
    )
    parser.add_argument("--private", action="store_true", help="make it private; refuse one that is there and public")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made if it is not there. Default: main")
    parser.add_argument("--message", metavar="TEXT", help="of the commit. Default: which model it is")
    parser.add_argument("--overwrite", action="store_true", help="replace another run that is there")
    parser.add_argument("--dry_run", action="store_true", help="show the files and the card; nothing is asked or sent")
    parser.add_argument("--json", action="store_true", help="what was done as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
