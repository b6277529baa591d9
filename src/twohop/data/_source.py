"""What a source of entities is: three kinds of records, and a way to find a picture again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class EntityRecord:
    """A thing that pictures show."""

    entity_id: str
    name: str
    """The name that prompts use."""
    aliases: tuple[str, ...]
    """Every accepted name, `name` included."""
    kind: str
    look_alikes: tuple[str, ...] = ()
    """Ids of the entities whose picture cannot be told from this one's."""
    popularity: float | None = None
    """As the source measures it; None: not known."""


@dataclass(frozen=True)
class FactRecord:
    """One answer to one relation of one entity, and where it was found."""

    entity_id: str
    relation: str
    answer: str
    answer_aliases: tuple[str, ...]
    """Every accepted answer, `answer` included."""
    name_in_answer: bool
    """The answer gives the name away, or the name the answer: never asked."""
    source: str
    source_version: str
    licence: str
    url: str


@dataclass(frozen=True)
class PictureRecord:
    """One picture that a source can make or fetch; `locator` is `<scheme>:<rest>`, see `fetch_picture`."""

    picture_id: str
    entity_id: str
    art_source: str
    style: str
    licence: str
    author: str
    source_page: str
    locator: str


class Source(Protocol):
    """Where entities, facts and pictures come from; the embedded one and, later, others."""

    def entities(self) -> Iterable[EntityRecord]:
        """Every entity that the source knows, in a fixed order."""
        ...

    def facts(self, relations: Sequence[str]) -> Iterator[FactRecord]:
        """What the source knows about these relations; an entity without an answer has no record."""
        ...

    def repeated(self) -> frozenset[str]:
        """Ids of the entities that have the same picture in two art sources: held out of neither, never evaluated."""
        ...

    def pictures(self) -> Iterator[PictureRecord]:
        """Every picture of every entity; a picture whose licence is unknown is left out."""
        ...

    def rejected(self) -> Sequence[tuple[str, frozenset[str]]]:
        """Further filters in their order: the reason, and the ids of the entities that it leaves out."""
        ...
