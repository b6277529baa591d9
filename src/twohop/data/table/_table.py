"""The source `table`: the user's own entities, answers and pictures (docs/sources.md says how to write one).

1. both tables are read as text, and every fault of columns and rows is listed at once;
2. every picture is decoded: too small or broken ones, and near-duplicates by their difference hash, leave entities out;
3. several rows that answer one question differently make it ambiguous: it is not asked.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from twohop.config import TableSource
from twohop.data._alike import difference_hash, near_duplicates
from twohop.data._names import fold, gives_away, spellings
from twohop.data._pictures import decode_picture
from twohop.data._source import EntityRecord, FactRecord, PictureRecord
from twohop.data._tables import report_faults
from twohop.data.table._cells import Rows, column_faults, fact_faults, read_rows, split_cell
from twohop.errors import DataError

PICTURE, MAIN = "picture", "main"
"""Column of the only picture, and its style; the column `picture.x` has pictures of the style x."""
OWN = "user's own"
"""Licence, author and source where the table says nothing."""
LISTED = 1000
"""Faults of a user's own table that one message lists."""
_KNOWN = ("entity_id", "name", "aliases", "kind", "licence", "author", "source_page", "left_out", "popularity", PICTURE)


@dataclass(frozen=True)
class _Row:
    """An entity's row: its record without look-alikes, its cells, and its picture files by style."""

    record: EntityRecord
    cells: Mapping[str, str]
    files: Mapping[str, Path]


class TableEntities:
    """Entities of a user's table (see `Source`).

    Args:
        params: which table, and the filters.
        relations: what is asked; columns of the table, or relations of the table of facts.
        files: the picture files that may be read; nothing else is.

    Raises:
        DataError: one line per fault of either table.
    """

    def __init__(self, params: TableSource, relations: Sequence[str], files: Iterable[Path]) -> None:
        self._params, self._relations = params, tuple(relations)
        self._allowed = {path.resolve(): path for path in files}
        self._where = params.entities
        table = read_rows(Path(params.entities))
        long = None if params.facts is None else read_rows(Path(params.facts))
        needed = ("name", *(self._relations if long is None else ()))
        faults = [*column_faults(table, needed, _KNOWN)]
        styles = _styles(table.columns)
        if not styles:
            faults.append(f"no column {PICTURE!r} (or {PICTURE}.x); the table has {', '.join(table.columns)}")
        self._rows = [] if faults else list(self._entities(table, styles, faults))
        report_faults(faults, self._where, LISTED)
        self._answers = self._wide() if long is None else self._long(long)
        self._version = _digest([table, *([] if long is None else [long])])
        self._small, hashes = self._look()
        self._alike = near_duplicates(hashes, params.near_duplicate_bits)

    def entities(self) -> Iterable[EntityRecord]:
        """Every row of the table, with its look-alikes by picture."""
        for row in self._rows:
            e = row.record
            yield replace(e, look_alikes=self._alike.get(e.entity_id, ()))

    def facts(self, relations: Sequence[str]) -> Iterator[FactRecord]:
        """One record per answered question; an ambiguous one has none."""
        names = {row.record.entity_id: row.record.aliases for row in self._rows}
        for relation in relations:
            for owner in names:
                found = self._answers.get((owner, relation), [])
                if len(_distinct(found)) == 1:
                    answers, cells = found[0]
                    yield FactRecord(
                        entity_id=owner,
                        relation=relation,
                        answer=answers[0],
                        answer_aliases=spellings(answers),
                        name_in_answer=gives_away(names[owner], answers),
                        source=cells.get("source") or OWN,
                        source_version=self._version,
                        licence=cells.get("licence") or OWN,
                        url=cells.get("url", ""),
                    )

    def repeated(self) -> frozenset[str]:
        """Entities with one file in two picture columns."""
        return frozenset(r.record.entity_id for r in self._rows if len(set(r.files.values())) < len(r.files))

    def rejected(self) -> Sequence[tuple[str, frozenset[str]]]:
        """Reasons that the table gives, no picture, licence, too small or broken, name in the file name, ambiguous."""
        accepted, rows = self._params.licences, self._rows
        named = self._params.named_files == "drop"
        given = sorted({row.cells.get("left_out", "") for row in rows} - {""})
        return (
            *((reason, _ids(r for r in rows if r.cells.get("left_out") == reason)) for reason in given),
            ("no picture", _ids(r for r in rows if not r.files)),
            ("licence", _ids(r for r in rows if accepted and (r.cells.get("licence") or OWN) not in accepted)),
            ("picture too small or broken", frozenset(self._small)),
            ("name in the picture's file name", _ids(r for r in rows if named and _is_named(r))),
            (
                "ambiguous answer",
                frozenset(e for (e, r), a in self._answers.items() if r in self._relations and len(_distinct(a)) > 1),
            ),
        )

    def pictures(self) -> Iterator[PictureRecord]:
        """One record per picture cell that is not empty."""
        for row in self._rows:
            for style, path in row.files.items():
                yield PictureRecord(
                    picture_id=f"{row.record.entity_id}/{style}",
                    entity_id=row.record.entity_id,
                    art_source=style,
                    style=style,
                    licence=row.cells.get("licence") or OWN,
                    author=row.cells.get("author") or OWN,
                    source_page=row.cells.get("source_page", ""),
                    locator=f"file:{path.as_posix()}",
                )

    def _entities(self, table: Rows, styles: Mapping[str, str], faults: list[str]) -> Iterator[_Row]:
        first: dict[str, int] = {}
        for number, cells in table.numbered():
            names = split_cell(f"{cells['name']}|{cells.get('aliases', '')}")
            given = cells.get("entity_id") or _identifier(cells["name"])
            faults += [f"row {number}: {fault}" for fault in self._row_faults(cells, given, styles)]
            if first.setdefault(given, number) != number:
                faults.append(f"row {number}: duplicate id {given!r}, first in row {first[given]}")
            files = {s: self._file(cells[c]) for c, s in styles.items() if cells[c]}
            popularity = _number(cells.get("popularity", ""))
            record = EntityRecord(
                f"table:{given}", cells["name"], spellings(names), cells.get("kind") or "thing", popularity=popularity
            )
            yield _Row(record, cells, {s: f for s, f in files.items() if f is not None})

    def _row_faults(self, cells: Mapping[str, str], given: str, styles: Mapping[str, str]) -> Iterator[str]:
        if not fold(cells["name"]):
            yield "empty name"
        elif not re.fullmatch(r"[\w.-]+", given):
            yield f"unusable entity_id {given!r}; allowed: letters, digits and any of ._-"
        if cells.get("popularity") and _number(cells["popularity"]) is None:
            yield f"popularity {cells['popularity']!r} is no number"
        for column in styles:
            if cells[column] and self._file(cells[column]) is None:
                yield f"{column} {cells[column]!r}: {self._why_not(cells[column])}"

    def _file(self, cell: str) -> Path | None:
        """The input file that a cell names, relative to the table's folder; None for anything else."""
        if "://" in cell or PurePosixPath(cell).is_absolute() or not self._is_inside(cell):
            return None
        return self._allowed.get((Path(self._where).parent / cell).resolve())

    def _is_inside(self, cell: str) -> bool:
        folder = Path(self._where).parent.resolve()
        return (folder / cell).resolve().is_relative_to(folder)

    def _why_not(self, cell: str) -> str:
        if "://" in cell:
            return "pictures by URL are not fetched; save it in the folder of pictures"
        if PurePosixPath(cell).is_absolute() or not self._is_inside(cell):
            return "lies outside the table's folder"
        return f"is no PNG, JPEG or WebP file in {self._params.pictures}"

    def _wide(self) -> dict[tuple[str, str], list[tuple[tuple[str, ...], Mapping[str, str]]]]:
        cells = {(row.record.entity_id, r): split_cell(row.cells[r]) for row in self._rows for r in self._relations}
        return {key: [(answers, {})] for key, answers in cells.items() if answers}

    def _long(self, long: Rows) -> dict[tuple[str, str], list[tuple[tuple[str, ...], Mapping[str, str]]]]:
        faults = list(fact_faults(long))
        if any(not fault.startswith("row ") for fault in faults):
            report_faults(faults, long.where, LISTED)
        owners = {row.record.entity_id.removeprefix("table:"): row.record.entity_id for row in self._rows}
        owners |= {row.record.name: row.record.entity_id for row in self._rows}
        out: dict[tuple[str, str], list[tuple[tuple[str, ...], Mapping[str, str]]]] = {}
        for number, cells in long.numbered():
            answers = split_cell(f"{cells['answer']}|{cells.get('aliases', '')}")
            if cells["entity"] and cells["entity"] not in owners:
                faults.append(f"row {number}: {cells['entity']!r} is no name and no entity_id of {self._where}")
            elif cells["entity"] and fold(cells["answer"]):
                out.setdefault((owners[cells["entity"]], cells["relation"]), []).append((answers, cells))
        absent = [r for r in self._relations if r not in {relation for _, relation in out}]
        faults += [f"no row of relation {r!r}, which curate_entities.relations asks" for r in absent]
        report_faults(faults, long.where, LISTED)
        return out

    def _look(self) -> tuple[set[str], dict[str, tuple[tuple[str, int], ...]]]:
        """Entities with a picture that is too small or broken; (style, hash) of the others' pictures."""
        small, hashes = set[str](), dict[str, tuple[tuple[str, int], ...]]()
        for row in self._rows:
            found: list[tuple[str, int]] = []
            for style, path in row.files.items():
                value = _hash_of(path, self._params.min_side_px)
                if value is None:
                    small.add(row.record.entity_id)
                else:
                    found.append((style, value))
            hashes[row.record.entity_id] = tuple(found)
        return small, hashes


def _styles(columns: Sequence[str]) -> dict[str, str]:
    """Picture columns and their styles."""
    named = {c: c.removeprefix(f"{PICTURE}.") for c in columns if c.startswith(f"{PICTURE}.")}
    return {**({PICTURE: MAIN} if PICTURE in columns else {}), **named}


def _number(cell: str) -> float | None:
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _identifier(name: str) -> str:
    return fold(name).replace(" ", "-")


def _distinct(found: Sequence[tuple[tuple[str, ...], Mapping[str, str]]]) -> set[str]:
    """First answers, folded."""
    return {fold(answers[0]) for answers, _ in found}


def _ids(rows: Iterable[_Row]) -> frozenset[str]:
    return frozenset(row.record.entity_id for row in rows)


def _is_named(row: _Row) -> bool:
    return any(fold(n) in fold(f.stem.replace("-", " ")) for n in row.record.aliases for f in row.files.values())


def _hash_of(path: Path, min_side_px: int) -> int | None:
    try:
        picture = decode_picture(path.read_bytes(), str(path))
    except (OSError, DataError):
        return None
    return None if min(picture.size) < min_side_px else difference_hash(picture)


def _digest(tables: Sequence[Rows]) -> str:
    """16 hex digits over the tables' rows: the version of the facts."""
    return hashlib.sha256(repr([(t.columns, t.rows) for t in tables]).encode()).hexdigest()[:16]
