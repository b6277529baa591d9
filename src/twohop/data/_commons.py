"""Pictures of Wikimedia Commons: addresses, licences and authors, from the MediaWiki API (promise F14).

50 titles a question, `maxlag`, one question at a time (`_web`). A picture is taken as its thumbnail of a standard
width, or as the original where that is no wider. Only licences that allow what a study does with pictures are accepted;
a picture of which licence or author is not known is left out, with the reason.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from typing import Any, get_args
from urllib.parse import unquote

from twohop.config import PictureWidth
from twohop.data._web import Answer, NotYet, Refused, Web

API = "https://commons.wikimedia.org/w/api.php"
HOSTS = frozenset({"commons.wikimedia.org", "upload.wikimedia.org"})
"""Hosts that a study with Commons pictures asks."""
TITLES = 50
"""Titles a question, the API's limit."""
MAX_LAG_S = 5
"""Seconds that the servers may lag behind before a question waits."""
WIDTHS: tuple[int, ...] = get_args(PictureWidth)
"""Standard thumbnail widths, in pixels: others are not cached by the servers, and refused by them."""
WHOLE = frozenset({"image/jpeg", "image/png", "image/webp"})
"""Types of which the original is taken too; of others, such as SVG, the rendered thumbnail alone."""
FIELDS = ("LicenseShortName", "License", "LicenseUrl", "Artist", "Credit")
AUTHOR_CHARS = 300
"""Longest author that is kept."""


@dataclass(frozen=True)
class CommonsPicture:
    """What Commons says of a file."""

    title: str
    """As it was asked for, without `File:`."""
    reason: str = ""
    """Why it cannot be used; empty when it can."""
    url: str = ""
    width: int = 0
    height: int = 0
    sha1: str | None = None
    """Of an original."""
    size_bytes: int | None = None
    """Of an original."""
    licence: str = ""
    licence_url: str = ""
    author: str = ""
    source_page: str = ""


def look_up(web: Web, titles: Iterable[str], width: int = 500, api: str = API) -> Iterator[CommonsPicture]:
    """Ask for files by title; one result each, in order.

    Args:
        web: the client.
        titles: file names, with or without `File:`.
        width: of the thumbnails, one of `WIDTHS`.
        api: address of the API.

    Raises:
        Refused: the API does not answer, or with something else.
    """
    if width not in WIDTHS:
        raise Refused(f"{width} is no standard thumbnail width", "width", f"one of {', '.join(map(str, WIDTHS))}")
    wanted = [plain_title(t) for t in titles]
    for start in range(0, len(wanted), TITLES):
        batch = wanted[start : start + TITLES]
        found = _ask(web, list(dict.fromkeys(batch)), width, api)
        yield from (_picture(title, found.get(title), width) for title in batch)


def plain_title(title: str) -> str:
    """A file's title as the API writes it: no `File:`, spaces, a capital first; also of an address of the file."""
    if title.startswith(("http://", "https://")):
        title = unquote(title.rsplit("/", 1)[-1])
    name = title.removeprefix("File:").replace("_", " ").strip()
    return name[:1].upper() + name[1:]


def _ask(web: Web, titles: Sequence[str], width: int, api: str) -> dict[str, Mapping[str, Any]]:
    """Page by title; answers in several parts are put together."""
    params = {
        "action": "query",
        "format": "json",
        "formatversion": "2",
        "prop": "imageinfo",
        "iiprop": "url|size|mime|sha1|extmetadata",
        "iiurlwidth": str(width),
        "iiextmetadatafilter": "|".join(FIELDS),
        "redirects": "1",
        "maxlag": str(MAX_LAG_S),
        "titles": "|".join(f"File:{t}" for t in titles),
    }
    pages: dict[str, Mapping[str, Any]] = {}
    names = {t: t for t in titles}
    more: Mapping[str, Any] | None = {}
    while more is not None:
        answer = web.get(api, "api", {**params, **{k: str(v) for k, v in more.items()}}, check=check_answer)
        tree: Mapping[str, Any] = json.loads(answer.data)
        query: Mapping[str, Any] = tree.get("query", {})
        for change in (*query.get("normalized", ()), *query.get("redirects", ())):
            old, new = plain_title(change["from"]), plain_title(change["to"])
            names = {asked: new if now == old else now for asked, now in names.items()}
        for page in query.get("pages", ()):
            title = plain_title(page["title"])
            if "imageinfo" in page or title not in pages:
                pages[title] = page
        more = tree.get("continue")
    return {asked: pages[now] for asked, now in names.items() if now in pages}


def check_answer(answer: Answer) -> None:
    """Is an answer of a MediaWiki API whole and no error?

    Raises:
        NotYet: cut off, or the servers lag behind.
        Refused: another error of the API.
    """
    try:
        tree: Any = json.loads(answer.data)
    except ValueError:
        raise NotYet("the answer is cut off: no JSON") from None
    error: Any = tree.get("error") if isinstance(tree, dict) else {"code": "shape", "info": "no object"}
    if error is None:
        return
    if error.get("code") in ("maxlag", "ratelimited", "readonly"):
        raise NotYet(f"{error['code']}: {error.get('info', '')}", float(answer.headers.get("retry-after") or 0))
    raise Refused(f"{error.get('code')}: {error.get('info', '')}", answer.url, "report this")


def _picture(title: str, page: Mapping[str, Any] | None, width: int) -> CommonsPicture:
    if page is None or page.get("missing") or not page.get("imageinfo"):
        return CommonsPicture(title, "no such file on Commons")
    info: Mapping[str, Any] = page["imageinfo"][0]
    said = {k: plain_text(str(v.get("value", ""))) for k, v in info.get("extmetadata", {}).items()}
    licence = accepted_licence(said.get("LicenseShortName", ""), said.get("License", ""))
    if licence is None:
        stated = said.get("LicenseShortName") or said.get("License")
        return CommonsPicture(title, f"licence {stated!r} is not accepted" if stated else "no licence is stated")
    author = (said.get("Artist") or said.get("Credit") or "")[:AUTHOR_CHARS]
    if not author and licence.startswith("CC BY"):
        return CommonsPicture(title, f"{licence} without an author to credit")
    usable = CommonsPicture(
        title,
        licence=licence,
        licence_url=said.get("LicenseUrl", ""),
        author=author or "unknown",
        source_page=str(info.get("descriptionurl", "")),
    )
    if int(info["width"]) <= width and info.get("mime") in WHOLE:
        size = {"width": int(info["width"]), "height": int(info["height"]), "size_bytes": int(info["size"])}
        return replace(usable, url=str(info["url"]), sha1=str(info["sha1"]), **size)
    if not info.get("thumburl"):
        return CommonsPicture(title, f"type {info.get('mime')!r} has no thumbnail")
    return replace(usable, url=str(info["thumburl"]), width=int(info["thumbwidth"]), height=int(info["thumbheight"]))


def accepted_licence(short_name: str, code: str) -> str | None:
    """CC0, public domain, CC BY or CC BY-SA with its version, written alike; None for anything else.

    >>> accepted_licence("CC BY-SA 4.0", "cc-by-sa-4.0")
    'CC BY-SA 4.0'
    """
    stated_words = [stated.lower().replace("-", " ").replace("_", " ").split() for stated in (short_name, code)]
    if any({"nc", "nd"} & set(words) for words in stated_words):  # either may be wrong: not taken
        return None
    for words in stated_words:
        if words[:2] == ["public", "domain"] or words[:1] == ["pd"]:
            return "public domain"
        if words[:1] == ["cc0"] or words[:2] == ["cc", "zero"]:
            return "CC0"
        if words[:2] == ["cc", "by"]:
            alike = words[2:3] == ["sa"]
            version = [w for w in words[2 + alike :] if w.replace(".", "").isdigit()][:1]
            return " ".join(["CC BY-SA" if alike else "CC BY", *version])
    return None


class _Text(HTMLParser):
    """Collects what a reader would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        style = (dict(attrs).get("style") or "").replace(" ", "").lower()
        if tag in ("script", "style") or (self.hidden and tag not in _VOID) or "display:none" in style:
            self.hidden += tag not in _VOID
        self.parts.append(" " if tag in ("br", "p", "div", "li", "td") else "")

    def handle_endtag(self, tag: str) -> None:
        if self.hidden and tag not in _VOID:
            self.hidden -= 1

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


_VOID = frozenset({"br", "img", "hr", "wbr", "input", "meta", "link"})


def plain_text(html: str) -> str:
    """The text of a piece of HTML, white space collapsed; nothing of it is markup any more.

    >>> plain_text('<a href="//x">Ann &amp; <b>Bo</b></a><script>x()</script>')
    'Ann & Bo'
    """
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join("".join(parser.parts).split())
