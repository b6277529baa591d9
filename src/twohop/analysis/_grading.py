"""Is this answer right? Alias match on normalised words (study, section 1), with the alias that matched kept for audit.

Both sides, the answer's first line and every alias, go through the same `words`:

1. Unicode NFKC, case folded; then accents are dropped (NFKD without combining marks), because a model of this size
   writes "Brasilia" as often as "Brasília" and the study asks what it knows, not how it spells;
2. "&" becomes "and", dots inside initialisms ("U.S.A.") and possessive or inner apostrophes go, every other
   punctuation mark is a space;
3. the English articles a, an, the are dropped.

An alias matches when its words stand in the answer as whole words, next to each other. An answer that lists several
candidates therefore counts as right when one of them is; the recorded alias and the answer's text let a person see
that.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from twohop.errors import DataError

ARTICLES = frozenset({"a", "an", "the"})
_INITIALISM = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_APOSTROPHES = re.compile("['`\u00b4\u2018\u2019\u02bb\u02bc]")
_POSSESSIVE = re.compile("['\u2019]s\\b")
_NOT_WORD = re.compile(r"[\W_]+")


def words(text: str) -> tuple[str, ...]:
    """The normalised words of a text, articles left out (unless nothing else is there)."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("&", " and ")
    text = _INITIALISM.sub(lambda m: m[0].replace(".", ""), text)
    text = _APOSTROPHES.sub("", _POSSESSIVE.sub("", text))
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    found = _NOT_WORD.sub(" ", text).split()
    return tuple(w for w in found if w not in ARTICLES) or tuple(found)


def first_line(text: str) -> str:
    """The first line that holds anything, without surrounding blanks."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def grade(answer_text: str, aliases: Sequence[str], rivals: Iterable[str] = ()) -> str | None:
    """The alias that the first line of an answer contains, or None when it contains none.

    The longest matching alias is returned (the first of equals), so that the record names the most specific reason.

    Args:
        answer_text: what the model wrote.
        aliases: accepted spellings of the right answer.
        rivals: spellings of other answers; a match that lies inside a longer rival's ("Guinea" in "Equatorial
            Guinea") does not count.

    Raises:
        DataError: an alias without a single word in it can match nothing.
    """
    answer = words(first_line(answer_text))
    needles = sorted(((_needle(a), a) for a in aliases), key=lambda pair: -len(pair[0]))
    hits = [(span, alias) for needle, alias in needles for span in _spans(answer, needle)]
    if not hits:
        return None
    taken = [span for rival in rivals for span in _spans(answer, words(rival))]
    return next((alias for span, alias in hits if not any(_inside(span, other) for other in taken)), None)


def _needle(alias: str) -> tuple[str, ...]:
    needle = words(alias)
    if not needle:
        raise DataError(
            f"the alias {alias!r} holds no word to match", "answer aliases", "remove it from the entity table"
        )
    return needle


def _spans(answer: Sequence[str], needle: Sequence[str]) -> list[tuple[int, int]]:
    n = len(needle)
    return [(i, i + n) for i in range(len(answer) - n + 1) if n and tuple(answer[i : i + n]) == tuple(needle)]


def _inside(span: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= span[0] and span[1] <= other[1] and other != span
