"""A user's table made from nothing: the flags without colour, as CSV and PNG files below data/own/grey_flags.

python configurations/grey_flags.py && cp configurations/grey_flags.yaml params.yaml && twohop write_dvc
"""

import csv
import io
from pathlib import Path

from PIL import Image

from twohop.data import FlagsSource, fetch_picture

FOLDER = Path("data/own/grey_flags")
STYLES = {"noto_original": "drawn", "circle": "round"}
"""Style of the embedded source -> picture column."""
RELATIONS = ("capital", "continent", "language")
SIDE_PX, GREY = 224, (128, 128, 128)


def main() -> None:
    """Write entities.csv and a folder of pictures."""
    (FOLDER / "pictures").mkdir(parents=True, exist_ok=True)
    source = FlagsSource()
    facts = {(f.entity_id, f.relation): "|".join(f.answer_aliases) for f in source.facts(RELATIONS)}
    columns = [
        "entity_id",
        "name",
        "aliases",
        "kind",
        "licence",
        *RELATIONS,
        *(f"picture.{c}" for c in STYLES.values()),
    ]
    with (FOLDER / "entities.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for entity in source.entities():
            code = entity.entity_id.removeprefix("flags:")
            row = {"entity_id": code, "name": entity.name, "aliases": "|".join(entity.aliases), "kind": entity.kind}
            row |= {"licence": "MIT or public domain"} | {r: facts[entity.entity_id, r] for r in RELATIONS}
            writer.writerow(row | {f"picture.{c}": _picture(code, style, c) for style, c in STYLES.items()})


def _picture(code: str, style: str, column: str) -> str:
    name = f"pictures/{code}-{column}.png"
    colour = Image.open(io.BytesIO(fetch_picture(f"mpl_flags:{style}/{code}", SIDE_PX, GREY)))
    colour.convert("L").save(FOLDER / name)
    return name


if __name__ == "__main__":
    main()
