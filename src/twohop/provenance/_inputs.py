"""What rests on an input: for a picture, what would have to go if it had to be taken down."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twohop.errors import ArtifactError
from twohop.lineage import Book, Record, downstream, sha256
from twohop.provenance._ancestry import Picture
from twohop.store import read_table, schemas

MANIFEST = Path("results/fetch_images/manifest.parquet")
QUESTIONS = Path("results/build_questions")
_SHORTEST_HASH = 8


@dataclass(frozen=True)
class Found:
    """An input, and all that came of it."""

    what: str
    """What the input is, in a few words."""
    picture: Picture | None
    archives: tuple[str, ...]
    """Files that hold the picture itself."""
    runs: tuple[Record, ...]
    """Runs that read it, or read what came of it."""
    questions: tuple[tuple[str, str], ...]
    """Model and question that show the picture."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "runs": [r.as_json() for r in self.runs]}


def find_input(text: str, book: Book, history: bool = False) -> Found:
    """All that rests on a file: a path, a sha256 (or its beginning), a picture's id or its file name.

    Raises:
        ArtifactError: no record and no manifest knows it, or a hash's beginning fits several files.
    """
    records = book.sorted(history)
    picture = _picture(text)
    if picture is not None:
        makers = [r for r in records if r.step == "fetch_images"]
        archives = tuple(sorted({o.path for r in makers for o in r.outputs}))
        outputs = {o.sha256 for r in makers for o in r.outputs}
        runs = downstream(records, outputs, {r.run_id for r in makers})
        return Found(f"picture {picture.picture_id}", picture, archives, tuple(runs), _shown_in(picture.picture_id))
    hashes, what = _hashes(text, records)
    return Found(what, None, (), tuple(downstream(records, hashes)), ())


def _picture(text: str) -> Picture | None:
    """The picture of the manifest that has this id, file name, locator, or content."""
    if not MANIFEST.exists():
        return None
    table = read_table(MANIFEST, schemas.MANIFEST)
    path, name = Path(text), Path(text).name
    tests = [
        pl.col("picture_id") == text,
        pl.col("file") == name,
        pl.col("locator") == text,
        pl.col("locator").str.ends_with(f"/{name}"),
    ]
    if path.is_file():
        tests.append(pl.col("sha256") == sha256(path))
    if _is_hash(text):
        tests.append(pl.col("sha256").str.starts_with(text))
    for test in tests:
        rows = table.filter(test.fill_null(False))
        if rows.height > 1 and rows["sha256"].n_unique() > 1:
            ids = ", ".join(rows["picture_id"].head(5))
            raise ArtifactError(f"{rows.height} pictures fit", text, f"name one by its id: {ids}, ...")
        if rows.height:
            return Picture(**rows.select(list(Picture.__dataclass_fields__)).row(0, named=True))
    return None


def _is_hash(text: str) -> bool:
    return len(text) >= _SHORTEST_HASH and re.fullmatch("[0-9a-f]+", text) is not None


def _hashes(text: str, records: list[Record]) -> tuple[set[str], str]:
    """Contents that the text means, and words for it."""
    files = [f for r in records for f in (*r.inputs, *r.outputs)]
    path = Path(text)
    known = {f.sha256 for f in files if Path(f.path) == path}
    if path.is_file():
        known.add(sha256(path))
    if known:
        return known, f"file {text}"
    if _is_hash(text):
        known = {f.sha256 for f in files if f.sha256.startswith(text)}
    if len(known) > 1:
        raise ArtifactError(f"{len(known)} files have a sha256 that begins so", text, "write more of it")
    if not known:
        raise ArtifactError(
            "no record reads or wrote it, and no picture has this id, file name or sha256",
            text,
            f"give a path, a sha256 (>= {_SHORTEST_HASH} digits), or a picture id of {MANIFEST}",
        )
    (digest,) = known
    return known, f"sha256 {digest[:12]}: {', '.join(sorted({f.path for f in files if f.sha256 == digest}))}"


def _shown_in(picture_id: str) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for file in sorted(QUESTIONS.glob("*/questions.parquet")):
        rows = read_table(file, schemas.QUESTIONS).filter(pl.col("picture_id") == picture_id)
        found += [(file.parent.name, question) for question in rows["question_id"]]
    return tuple(found)
