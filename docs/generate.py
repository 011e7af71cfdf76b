"""Write what of the documentation is made from the code, and the JSON Schemas: `python docs/generate.py`.

The pages of `generation.pages`, the pictures, the JSON Schemas, and the outputs of commands that stand in pages
(`generation.outputs`). CI fails when one of them is stale.
"""

from __future__ import annotations

from generation.outputs import refresh
from generation.pages import DOCS, pages
from generation.pictures import PICTURES

from morphing_trainer.schemas import FILES
from morphing_trainer.schemas.building import schema_text


def main() -> None:
    made = {DOCS / name: text for name, text in pages().items()}
    made |= {DOCS / "pictures" / f"{name}.svg": draw() for name, draw in PICTURES.items()}
    made |= {file: schema_text(kind) for kind, file in FILES.items()}
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print("wrote", *made)
    print("outputs of commands that have changed:", ", ".join(refresh()) or "none")


if __name__ == "__main__":
    main()
