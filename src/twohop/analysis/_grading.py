"""Is this answer right? Alias match on normalised words (study, section 1), with the alias that matched kept for audit.

Both sides, the answer's first line and every alias, go through the same `words`:

1. Unicode NFKC, case folded; then accents are dropped (NFKD without combining marks), because a model of this size
   writes "Brasilia" as often as "Brasília" and the study asks what it knows, not how it spells;
2. "&" becomes "and", dots inside initialisms ("U.S.A.") and possessive or inner apostrophes go, as do commas that
   group thousands ("1,000"); every other punctuation mark is a space;
3. "St", "Ste" and "Sainte" become "saint", "Mt" becomes "mount";
4. number words up to ninety-nine become digits ("twenty-one": "21");
5. the English articles a, an, the are dropped.

An alias matches when its words stand in the answer as whole words, next to each other (`judge`), unless

- the line begins by declining to answer ("I don't know"): what follows is a guess, not recall;
- the word "not" (or neither, nor, never) stands right before it: "not Paris but Lyon" is Lyon;
- it stands inside a longer rival's name ("Guinea" in "Equatorial Guinea");
- a rival is named before it: of several candidates the first is the answer. Rivals are given where one thing has one
  name (recognition); a fact may have several right answers (languages), so there a list counts that holds one.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from twohop.errors import DataError

Span = tuple[int, int]
Reason = Literal["alias", "no match", "refusal", "denied", "inside another name", "another name first"]

ARTICLES = frozenset({"a", "an", "the"})
_SAME = {"st": "saint", "ste": "saint", "sainte": "saint", "mt": "mount"}
_UNITS = dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], range(1, 10), strict=True))
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_DECADES = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_TENS = dict(zip(_DECADES, range(20, 100, 10), strict=True))
_NUMBERS = {"zero": 0} | _UNITS | {word: n for n, word in enumerate(_TEENS, 10)} | _TENS
_DENIALS = frozenset({"not", "neither", "nor", "never", "isnt"})
_REFUSAL = re.compile(
    r"(?:(?:sorry|well|unfortunately|im sorry|i am sorry|but) )*"
    r"(?:i (?:really )?(?:do not|dont|cannot|can not|cant|could not|couldnt|am not|am unable)(?: \w+)?|im not sure"
    r"|im unable|unknown|not known|not sure|no idea|it is not (?:known|clear|possible)|it is unknown|none)\b"
)
"""In normalised words, at the beginning of the line."""
_INITIALISM = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_APOSTROPHES = re.compile("['`\u00b4\u2018\u2019\u02bb\u02bc]")
_POSSESSIVE = re.compile("['\u2019]s\\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Verdict:
    """The alias that matched, None when the answer is wrong, and why."""

    alias: str | None
    reason: Reason


def words(text: str) -> tuple[str, ...]:
    """The normalised words of a text, articles left out (unless nothing else is there)."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("&", " and ")
    text = _INITIALISM.sub(lambda m: m[0].replace(".", ""), text)
    text = _THOUSANDS.sub("", _APOSTROPHES.sub("", _POSSESSIVE.sub("", text)))
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    found = _digits([_SAME.get(w, w) for w in _NOT_WORD.sub(" ", text).split()])
    return tuple(w for w in found if w not in ARTICLES) or tuple(found)


def _digits(found: Sequence[str]) -> list[str]:
    """Number words as digits; a ten and the unit after it are one number."""
    out: list[str] = []
    tens = 0
    for word in found:
        if tens and word in _UNITS:
            out[-1] = str(tens + _UNITS[word])
        else:
            out.append(str(_NUMBERS[word]) if word in _NUMBERS else word)
        tens = _TENS.get(word, 0)
    return out


def first_line(text: str) -> str:
    """The first line that holds anything, without surrounding blanks."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def grade(answer_text: str, aliases: Sequence[str], rivals: Iterable[str] = ()) -> str | None:
    """The alias that the first line of an answer gives, or None when it gives none; see `judge`."""
    return judge(answer_text, aliases, rivals).alias


def judge(answer_text: str, aliases: Sequence[str], rivals: Iterable[str] = ()) -> Verdict:
    """Grade an answer and say why.

    The longest matching alias is named (the first of equals), so that the record holds the most specific reason.

    Args:
        answer_text: what the model wrote.
        aliases: accepted spellings of the right answer.
        rivals: spellings of other answers. A match inside a longer one, or after one, does not count.

    Raises:
        DataError: an alias without a single word in it can match nothing.
    """
    answer = words(first_line(answer_text))
    needles = sorted(((_needle(a), a) for a in aliases), key=lambda pair: -len(pair[0]))
    hits = [(span, alias) for needle, alias in needles for span in _spans(answer, needle)]
    refused = _refusal(answer)
    if not hits:
        return Verdict(None, "refusal" if refused else "no match")
    if refused and all(span[0] >= refused for span, _ in hits):
        return Verdict(None, "refusal")
    said = [(span, alias) for span, alias in hits if not _denied(answer, span)]
    if not said:
        return Verdict(None, "denied")
    own = {needle for needle, _ in needles}
    others = [span for rival in rivals if (r := words(rival)) not in own for span in _spans(answer, r)]
    said = [(span, alias) for span, alias in said if not any(_inside(span, other) for other in others)]
    if not said:
        return Verdict(None, "inside another name")
    first = min(span[0] for span, _ in said)
    apart = [o for o in others if not _denied(answer, o) and not any(_inside(o, span) for span, _ in said)]
    if any(start < first for start, _ in apart):
        return Verdict(None, "another name first")
    return Verdict(said[0][1], "alias")


def _refusal(answer: Sequence[str]) -> int:
    """How many words at the beginning decline to answer; 0 when none do."""
    found = _REFUSAL.match(" ".join(answer))
    return len(found[0].split()) if found else 0


def _denied(answer: Sequence[str], span: Span) -> bool:
    return span[0] > 0 and answer[span[0] - 1] in _DENIALS


def _needle(alias: str) -> tuple[str, ...]:
    needle = words(alias)
    if not needle:
        raise DataError(
            f"the alias {alias!r} holds no word to match", "answer aliases", "remove it from the entity table"
        )
    return needle


def _spans(answer: Sequence[str], needle: Sequence[str]) -> list[Span]:
    n = len(needle)
    return [(i, i + n) for i in range(len(answer) - n + 1) if n and tuple(answer[i : i + n]) == tuple(needle)]


def _inside(span: Span, other: Span) -> bool:
    return other[0] <= span[0] and span[1] <= other[1] and other != span
