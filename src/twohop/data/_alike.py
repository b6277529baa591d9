"""Near-duplicate pictures by their difference hash (dHash, 64 bits)."""

from collections.abc import Mapping

import numpy as np
from PIL import Image

SIDE = 8
"""Rows, and differences in a row, of the hash."""


def difference_hash(picture: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 grey pixels is darker than its right neighbour (N. Krawetz, "Kind of Like That").

    Every picture of one colour has the hash 0.
    """
    grey = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.LANCZOS), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def near_duplicates(hashes: Mapping[str, tuple[tuple[str, int], ...]], max_bits: int) -> dict[str, tuple[str, ...]]:
    """For every id the other ids with a picture of the same style whose hash differs in at most `max_bits` bits.

    Args:
        hashes: id -> (style, hash) of each of its pictures.
        max_bits: 0 finds equal hashes only.
    """
    flat = [(owner, style, value) for owner, pictures in hashes.items() for style, value in pictures]
    values = np.array([value for *_, value in flat], dtype=np.uint64)
    found: dict[str, set[str]] = {owner: set() for owner in hashes}
    for owner, style, value in flat:
        close = np.flatnonzero(np.bitwise_count(values ^ np.uint64(value)) <= max_bits)
        found[owner] |= {flat[i][0] for i in close if flat[i][1] == style}
    return {owner: tuple(sorted(others - {owner})) for owner, others in found.items()}
