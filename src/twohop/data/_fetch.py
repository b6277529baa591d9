"""From a picture record's locator to the bytes of a PNG; one fetcher per scheme."""

from collections.abc import Callable, Mapping, Sequence

from twohop.data._render import png_bytes, render_flag
from twohop.errors import DataError

Fetcher = Callable[[str, int, Sequence[int]], bytes]
"""(locator without its scheme, side in pixels, RGB of the canvas) -> PNG bytes."""


def _rendered(rest: str, size_px: int, background: Sequence[int]) -> bytes:
    style, _, code = rest.partition("/")
    return png_bytes(render_flag(code, style, size_px, background))


FETCHERS: Mapping[str, Fetcher] = {"mpl_flags": _rendered}
"""Scheme -> fetcher; a network source adds its own."""


def fetch_picture(locator: str, size_px: int, background: Sequence[int]) -> bytes:
    """The picture at a locator on a square canvas, as PNG.

    Args:
        locator: `<scheme>:<rest>`, e.g. `mpl_flags:noto_original/FR`.
        size_px: side of the canvas in pixels.
        background: RGB of the canvas, 0-255.

    Raises:
        DataError: an unknown scheme, or the source has no such picture.
    """
    scheme, _, rest = locator.partition(":")
    if scheme not in FETCHERS:
        raise DataError(f"unknown scheme {scheme!r}", locator, f"use one of {', '.join(FETCHERS)}")
    return FETCHERS[scheme](rest, size_px, background)
