"""Flags that a picture cannot tell apart, measured on the flags themselves and joined with the known ones.

Each flag is stretched over a small square canvas in two full-bleed renderings of independent artists, and averaged
into a thumbnail. Two flags look alike when the root mean square difference of their thumbnails is under the threshold
in either rendering. The known list covers those that differ only in shade, proportion or a small emblem.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from twohop.data._render import draw, flag_drawing

STYLES = ("1x1", "noto_original")
CANVAS_PX, THUMB_PX = 96, 16
"""Side of the drawn and of the averaged picture in pixels."""
THRESHOLD = 30.0
"""Root mean square difference in levels of 0-255: Egypt/Yemen are 13 apart, Australia/New Zealand 29."""
SAME_PICTURE = 10.0
"""As `THRESHOLD`, on whole canvases of `CANVAS_PX`: Switzerland 0 apart in two sources, the Vatican 8, Denmark 16."""
NEUTRAL = (128, 128, 128)
KNOWN = (
    ("ID", "MC"),
    ("AD", "MD", "RO", "TD"),
    ("BO", "GH"),
    ("EG", "IQ", "SY", "YE"),
    ("GN", "ML", "SN"),
    ("LU", "NL"),
    ("AU", "NZ"),
    ("HN", "NI", "SV"),
    ("RU", "SI", "SK"),
    ("CO", "EC", "VE"),
)
"""Groups that people confuse; the specification names the first five."""


def look_alikes(codes: Sequence[str], threshold: float = THRESHOLD) -> dict[str, tuple[str, ...]]:
    """For every code, the codes whose flag it cannot be told from (symmetric, not transitive, sorted)."""
    alike: dict[str, set[str]] = {code: set() for code in codes}
    pairs = [p for group in KNOWN for p in itertools.combinations(group, 2)]
    for style in STYLES:
        thumbs = np.stack([thumbnail(code, style) for code in codes])
        pairs += [(codes[i], codes[j]) for i, j in close_pairs(thumbs, threshold)]
    for a, b in pairs:
        if a in alike and b in alike:
            alike[a].add(b)
            alike[b].add(a)
    return {code: tuple(sorted(others)) for code, others in alike.items()}


def thumbnail(code: str, style: str) -> Float[np.ndarray, "side side 3"]:
    """Mean colours of a `THUMB_PX` x `THUMB_PX` grid over the flag, 0-255."""
    picture = draw(flag_drawing(code, style), CANVAS_PX, NEUTRAL, stretch=True)
    return np.asarray(picture.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX), dtype=np.float64)


def same_in_two_sources(code: str, sources: Mapping[str, str]) -> bool:
    """Whether two art sources show this flag by the same picture, proportions included.

    Args:
        code: ISO code.
        sources: style -> art source.
    """
    seen = {s: np.asarray(draw(flag_drawing(code, s), CANVAS_PX, NEUTRAL), dtype=np.float64) for s in sources}
    return any(
        sources[a] != sources[b] and bool(np.mean((seen[a] - seen[b]) ** 2) < SAME_PICTURE**2)
        for a, b in itertools.combinations(sources, 2)
    )


def close_pairs(thumbs: Float[np.ndarray, "flag side side 3"], threshold: float) -> list[tuple[int, int]]:
    """Index pairs i < j whose root mean square difference is under the threshold."""
    flat = thumbs.reshape(len(thumbs), -1)
    pairs: list[tuple[int, int]] = []
    for i in range(len(flat)):
        squares = np.mean((flat[i + 1 :] - flat[i]) ** 2, axis=1)
        pairs += [(i, i + 1 + int(j)) for j in np.flatnonzero(squares < threshold**2)]
    return pairs
