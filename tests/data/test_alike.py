"""Near-duplicates by difference hash."""

import numpy as np
from PIL import Image

from twohop.data import difference_hash, near_duplicates


def noise(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 90), Image.Resampling.BICUBIC)


def test_hash_survives_scaling_and_tells_pictures_apart():
    pictures = [noise(i) for i in range(8)]
    hashes = [difference_hash(p) for p in pictures]
    for picture, value in zip(pictures, hashes, strict=True):
        assert (difference_hash(picture.resize((200, 180))) ^ value).bit_count() <= 2
    distances = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 12
    ramp = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (90, 1)))
    assert difference_hash(ramp) == 2**64 - 1


def test_only_pictures_of_one_style_are_compared():
    hashes = {"a": (("x", 0b111), ("y", 0b0)), "b": (("x", 0b110),), "c": (("y", 0b110),), "d": ()}
    assert near_duplicates(hashes, 1) == {"a": ("b",), "b": ("a",), "c": (), "d": ()}
    assert near_duplicates(hashes, 0)["a"] == ()
    assert near_duplicates(hashes, 2)["c"] == ("a",)
    assert near_duplicates({}, 3) == {}
