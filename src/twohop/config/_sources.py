"""Sources of entities that `curate_entities.source` can name, and the files that each reads, for both engines."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from twohop.config._base import Section
from twohop.errors import ConfigError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
"""Files of a picture folder that count; in lower or upper case."""
MAX_PICTURES = 1000
"""Files in a user's picture folder; each is an input by name."""
MAX_LETTERS = 100_000
"""Of all their paths together: Linux takes no command longer than 128 KiB."""


def _own_path(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not path.parts or not re.fullmatch(r"[\w./-]+", text):
        raise ValueError(f"is {text!r}; allowed: a path below the project's folder, of letters, digits and any of ._-/")
    return str(path)


OwnPath = Annotated[str, AfterValidator(_own_path)]
PictureWidth = Literal[120, 250, 330, 500, 960, 1280]
"""Widths of thumbnails that Commons' servers keep, in pixels."""


class _Pictured(Section):
    """What is asked of every picture."""

    min_side_px: int = Field(default=32, ge=1, le=4096)
    """An entity with a picture whose shorter side has fewer pixels is left out."""
    near_duplicate_bits: int = Field(default=2, ge=0, le=32)
    """Entities whose pictures' 64-bit difference hashes differ in no more bits are look-alikes, and left out."""


class TableSource(_Pictured):
    """The user's own table: CSV, Parquet or JSONL, with pictures in a folder (docs/sources.md)."""

    kind: Literal["table"]
    """The user's own table."""
    entities: OwnPath
    """Table with a row per entity, ending in .csv, .parquet or .jsonl."""
    facts: OwnPath | None = None
    """Table with a row per entity and relation, where the answers are not columns of `entities`."""
    pictures: OwnPath
    """Folder of the PNG, JPEG and WebP files that the table's picture columns name; every one is an input."""
    licences: list[str] = Field(default_factory=list[str])
    """Licences that are accepted, as the table's column spells them; an empty list accepts every one."""
    named_files: Literal["keep", "drop"] = "keep"
    """Whether an entity is left out whose picture's file name holds its name (no model sees the file name)."""


class HubDataset(Section):
    """A data set of the hub, at one commit."""

    id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    """Owner and name, e.g. wikimedia/wit_base."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """Commit, 40 hex digits; a branch like main moves, so it is refused."""


class _Saved(_Pictured):
    """A source that `twohop fetch_entities` saves as a table."""

    folder: OwnPath
    """Folder of the tables and pictures that `twohop fetch_entities` makes."""

    def made_of(self) -> dict[str, Any]:
        """What the saved tables depend on: the keys of this section, and the sha256 of files of yours; as JSON."""
        rest = {"min_side_px", "near_duplicate_bits", "contact", "licences", "named_files"}
        keys: dict[str, Any] = self.model_dump(mode="json", exclude=rest)
        return {"source": keys, "files": {path: _sha256(path) for path in self._own_files()}}

    def _own_files(self) -> list[str]:
        """Tables of the user's that are read when it is saved."""
        return []

    def as_table(self) -> TableSource:
        """The saved tables and pictures."""
        return TableSource(
            kind="table",
            entities=f"{self.folder}/entities.parquet",
            facts=f"{self.folder}/facts.parquet",
            pictures=f"{self.folder}/pictures",
            min_side_px=self.min_side_px,
            near_duplicate_bits=self.near_duplicate_bits,
        )


class _Held(_Saved):
    """A published data set: its files in a folder, or on the hub."""

    files: OwnPath | None = None
    """Folder of the data set's own files; or `hub`."""
    hub: HubDataset | None = None
    """The hub's copy of them; or `files`."""
    max_entities: int = Field(default=500, ge=4, le=MAX_PICTURES)
    """Entities that are taken at most, in the order of the files."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.files is None) == (self.hub is None):
            raise ValueError("needs either files, a folder, or hub, an id and a revision")
        return self


class PopvqaSource(_Held):
    """PopVQA's entities.csv and questions.csv (Cohen et al. 2024, arXiv 2412.14133; docs/sources.md)."""

    kind: Literal["popvqa"]
    """PopVQA."""
    types: list[Literal["paintings", "brands", "landmarks", "celebs"]] = Field(
        default=["paintings", "brands", "landmarks"], min_length=1
    )
    """Types of entities, as its column `type` has them; people only where they are named here."""
    contact: str = ""
    """As of kind wikidata; asked where a picture is not in `files`, and is looked up on Wikidata and Commons."""
    picture_width: PictureWidth = 500
    """As of kind wikidata."""


class WitSource(_Held):
    """Pictures of Wikipedia articles from WIT's parquet files, wit_base (arXiv 2103.01913), with your own facts."""

    kind: Literal["wit"]
    """WIT as Wikimedia published it."""
    parts: list[str] = Field(min_length=1)
    """Which files are read: patterns such as `*-0000?-of-00330.parquet`; of 330, each holds about 20,000 pictures."""
    facts: OwnPath
    """Your table of answers (`entity`, `relation`, `answer`, ...), `entity` being the title of an article."""
    language: str = Field(default="en", pattern="^[a-z]{2,3}(-[a-z]+)?$")
    """Language of the Wikipedia whose titles the facts name."""
    entity_kind: str = Field(default="thing", pattern="^[a-z_]+$")
    """What the entities are, e.g. landmark."""

    def _own_files(self) -> list[str]:
        return [self.facts]


class LinksSource(_Saved):
    """Your own table with https addresses in its picture columns, which are fetched (docs/sources.md)."""

    kind: Literal["links"]
    """The user's own table, pictures by address."""
    table: OwnPath
    """As `entities` of kind table; a picture cell is an https address, or a path as there."""
    facts: OwnPath | None = None
    """As of kind table."""
    contact: str
    """As of kind wikidata."""
    licences: list[str] = Field(default_factory=list[str])
    """As of kind table."""

    def as_table(self) -> TableSource:
        """The saved table and pictures."""
        found = super().as_table()
        return found.model_copy(update={"facts": self.facts, "licences": self.licences})

    def _own_files(self) -> list[str]:
        return [self.table]


class WikidataSource(_Saved):
    """Wikidata's entities and facts, Commons' pictures, as `twohop fetch_entities` saves them (docs/sources.md)."""

    kind: Literal["wikidata"]
    """Wikidata and Wikimedia Commons."""
    item_class: Literal["landmark", "painting", "logo", "animal", "person"]
    """What is looked for; relations: landmark_country, landmark_city, architect; painter, museum, painting_year;
    company_country, industry, founder; parent_taxon, conservation_status; citizenship, occupation, birthplace."""
    contact: str = ""
    """E-mail address or page of whom the services may write to: they ask for one in every request."""
    min_sitelinks: int = Field(default=40, ge=1)
    """Least number of Wikipedia editions and sister projects that have a page of the entity: its popularity."""
    max_entities: int = Field(default=500, ge=4, le=MAX_PICTURES)
    """Entities that are fetched at most, those with the lowest item numbers."""
    language: str = Field(default="en", pattern="^[a-z]{2,3}(-[a-z]+)?$")
    """Language of names and answers."""
    picture_width: PictureWidth = 500
    """Width of the thumbnails in pixels, one of those that the servers keep."""


FetchedSource = WikidataSource | PopvqaSource | WitSource | LinksSource
MADE_OF = "made_of.json"
"""In a saved source's folder: what it was made of; written last."""
Sources = Literal["flags"] | TableSource | FetchedSource


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return str(value["kind"]) if "kind" in value else None  # pyright: ignore[reportUnknownArgumentType]
    return value.kind if isinstance(value, TableSource | FetchedSource) else str(value)


EntitySource = Annotated[
    Annotated[Literal["flags"], Tag("flags")]
    | Annotated[TableSource, Tag("table")]
    | Annotated[WikidataSource, Tag("wikidata")]
    | Annotated[PopvqaSource, Tag("popvqa")]
    | Annotated[WitSource, Tag("wit")]
    | Annotated[LinksSource, Tag("links")],
    Discriminator(_kind),
]
"""`flags`, the embedded source, or a section whose `kind` says which one it is."""


def source_table(source: Sources) -> TableSource | None:
    """The table that a source is, or was saved as; None for the embedded one.

    Raises:
        ConfigError: it was not fetched yet.
    """
    if isinstance(source, str):
        return None
    if isinstance(source, TableSource):
        return source
    found = source.as_table()
    reason = _why_stale(source, found)
    if reason:
        raise ConfigError(reason, "params.yaml, curate_entities.source", "run `twohop fetch_entities`")
    return found


def _why_stale(source: FetchedSource, table: TableSource) -> str:
    """Why the saved tables are not those that the section asks for; empty when they are."""
    made_of = f"{source.folder}/{MADE_OF}"
    absent = [path for path in (*_files(table), made_of) if not Path(path).exists()]
    if absent:
        return f"nothing fetched yet: no {absent[0]}"
    try:
        then: dict[str, Any] = json.loads(Path(made_of).read_text(encoding="utf-8"))
        keys, files = dict(then["source"]), dict(then["files"])
    except (ValueError, KeyError, TypeError):
        return f"{made_of} cannot be read"
    now = source.made_of()
    other = [f"{k}: {keys.get(k)!r}, now {v!r}" for k, v in now["source"].items() if keys.get(k) != v]
    if other:
        return f"fetched for other settings ({'; '.join(other)})"
    changed = [path for path, digest in now["files"].items() if files.get(path) != digest]
    return f"{changed[0]} changed since the fetch" if changed else ""


def _sha256(path: str) -> str:
    """Of a file; empty where there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _files(table: TableSource) -> list[str]:
    """Tables that a source reads, as params.yaml has them."""
    return [table.entities, *([table.facts] if table.facts else [])]


def source_tables(source: Sources) -> list[str]:
    """The tables that a source reads, relative to the project's folder.

    Raises:
        ConfigError: they were not fetched yet.
    """
    table = source_table(source)
    return [] if table is None else _files(table)


def source_pictures(source: Sources) -> list[str]:
    """The picture files that a source may read, sorted; links are none of them.

    Raises:
        ConfigError: the folder is absent, holds more than `MAX_PICTURES`, or a name that a shell would split.
    """
    table = source_table(source)
    if table is None:
        return []
    folder, where = Path(table.pictures), "params.yaml, curate_entities.source.pictures"
    if not folder.is_dir():
        raise ConfigError(f"no folder {table.pictures}", where, "make it, or correct the path")
    found = sorted(p.as_posix() for p in folder.rglob("*") if _is_picture(p, folder))
    odd = [name for name in found if not re.fullmatch(r"[\w./-]+", name)]
    if odd:
        raise ConfigError(f"unusable file name {odd[0]!r}", where, "rename it: letters, digits and any of ._-")
    if len(found) > MAX_PICTURES:
        raise ConfigError(f"{len(found)} pictures, more than {MAX_PICTURES}", where, "keep those that the table names")
    if sum(len(name.encode()) + 1 for name in found) > MAX_LETTERS:
        raise ConfigError(f"paths of more than {MAX_LETTERS} letters in all", where, "shorten the names of the files")
    return found


def _is_picture(path: Path, folder: Path) -> bool:
    """A plain file inside the folder itself, whatever links lead there."""
    plain = path.suffix.lower() in PICTURE_ENDINGS and path.is_file() and not path.is_symlink()
    return plain and path.resolve().is_relative_to(folder.resolve())
