"""From a picture record's locator to the bytes of a PNG; one fetcher per scheme."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps

from twohop.data._pictures import decode_picture
from twohop.data._render import png_bytes, render_flag
from twohop.errors import DataError

Fetcher = Callable[[str, int, Sequence[int]], bytes]
"""(locator without its scheme, side in pixels, RGB of the canvas) -> PNG bytes."""


def _rendered(rest: str, size_px: int, background: Sequence[int]) -> bytes:
    style, _, code = rest.partition("/")
    return png_bytes(render_flag(code, style, size_px, background))


def _from_file(rest: str, size_px: int, background: Sequence[int]) -> bytes:
    """A local picture, whole, in the middle of the canvas; its transparency is dropped."""
    try:
        picture = decode_picture(Path(rest).read_bytes(), rest)
    except OSError as error:
        raise DataError(f"cannot read it: {error}", rest, "put the file back") from None
    fitted = ImageOps.contain(picture, (size_px, size_px), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size_px, size_px), (background[0], background[1], background[2]))
    canvas.paste(fitted, ((size_px - fitted.width) // 2, (size_px - fitted.height) // 2))
    return png_bytes(canvas)


def check_local(locators: Iterable[str], files: Iterable[Path]) -> None:
    """Local pictures are read only where they are inputs of the step, so that no table leads to another file.

    Raises:
        DataError: a `file:` locator names a file that is not among `files`.
    """
    known = {path.as_posix() for path in files}
    for locator in locators:
        scheme, _, rest = locator.partition(":")
        if scheme == "file" and rest not in known:
            raise DataError("no input of this step", locator, "run `snakemake --cores all`: it reads the table again")


FETCHERS: Mapping[str, Fetcher] = {"mpl_flags": _rendered, "file": _from_file}
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
