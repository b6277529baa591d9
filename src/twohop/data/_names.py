"""Spellings: which strings name the same thing, and which give another one away."""

import re
import unicodedata
from collections.abc import Iterable


def fold(text: str) -> str:
    """Lower case without accents, punctuation or doubled spaces: `Côte d’Ivoire` -> `cote d ivoire`."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^\w\s]|_", " ", bare.casefold()).split())


def spellings(names: Iterable[str]) -> tuple[str, ...]:
    """The names in their order, each once, with the variants that people write: `&`/and, St./Saint, accents, quotes."""
    out: dict[str, None] = {}
    for name in names:
        for variant in (name, *_variants(name)):
            out.setdefault(variant, None)
    return tuple(out)


def _variants(name: str) -> Iterable[str]:
    plain = name.replace("\u2019", "'").replace("\u02bb", "'").replace("&", "and")
    yield plain
    yield re.sub(r"\bSt\.", "Saint", plain)
    yield "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))


def gives_away(names: Iterable[str], answers: Iterable[str]) -> bool:
    """Whether a name contains an accepted answer or an answer a name, letter by letter.

    An answer that holds another accepted answer is not looked at: where `dollar` is enough, `Australian dollar` gives
    nothing away.
    """
    folded = {fold(a) for a in answers} - {""}
    least = [a for a in folded if not any(f" {b} " in f" {a} " for b in folded if b != a)]
    folded_names = {fold(n) for n in names} - {""}
    return any(a in n or n in a for a in least for n in folded_names)
