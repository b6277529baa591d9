"""Augmented copies of a picture: the same flag, seen a little differently.

One copy = shift, scale, squash, rotation and shear of the canvas; another background; brightness, contrast and colour;
blur. Left and right are never exchanged, and colours never permuted: both would make another flag.
"""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

SCALE, SQUASH = (0.72, 1.12), (0.62, 1.0)
"""Factors of the drawn size, and of its height alone (flags are 1:1 to 1:2)."""
SHIFT, TURN_DEG, SHEAR = 0.08, 6.0, 0.08
"""Largest shift as a share of the side, rotation in degrees, horizontal and vertical shear."""
JITTER = 0.2
"""Largest relative change of brightness, contrast and saturation."""
BLUR_SHARE = 0.006
"""Largest Gaussian blur radius as a share of the side."""
TOLERANCE = 3
"""Largest difference per channel of a background pixel from the canvas colour, 0-255."""


def augment(picture: Image.Image, canvas: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """One augmented copy of an RGB picture whose surroundings have the colour `canvas`; same size."""
    colour = _new_canvas(canvas, rng)
    flag = picture.convert("RGB")
    mask = _drawn(flag, canvas)
    warp = _warp(flag.size, rng)
    flag = flag.transform(flag.size, Image.Transform.AFFINE, warp, Image.Resampling.BICUBIC, fillcolor=canvas)
    mask = mask.transform(mask.size, Image.Transform.AFFINE, warp, Image.Resampling.BILINEAR, fillcolor=0)
    out = Image.composite(_jittered(flag, rng), Image.new("RGB", flag.size, colour), mask)
    return out.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, BLUR_SHARE)) * flag.width))


def _new_canvas(canvas: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """Half of the copies keep the neutral canvas; the others get a random grey or colour."""
    draw = rng.uniform()
    if draw < 0.5:
        return canvas
    values = rng.integers(0, 256, 3) if draw > 0.75 else np.repeat(rng.integers(0, 256), 3)
    return (int(values[0]), int(values[1]), int(values[2]))


def _drawn(flag: Image.Image, canvas: tuple[int, int, int]) -> Image.Image:
    """255 where the picture differs from the canvas, 0 outside the drawing (only what touches the border counts)."""
    pixels = np.asarray(flag, dtype=np.int16)
    same = (np.abs(pixels - np.asarray(canvas, dtype=np.int16)).max(-1)) <= TOLERANCE
    outside = _touching_border(same)
    return Image.fromarray(np.where(outside, 0, 255).astype(np.uint8))


def _touching_border(same: np.ndarray) -> np.ndarray:
    """Canvas pixels reached from a side without leaving the canvas along their row or column."""
    runs = (same, same[::-1], same[:, ::-1])
    down = np.logical_and.accumulate(runs[0], 0)
    up = np.logical_and.accumulate(runs[1], 0)[::-1]
    right = np.logical_and.accumulate(runs[0], 1)
    left = np.logical_and.accumulate(runs[2], 1)[:, ::-1]
    return down | up | right | left


def _warp(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float, float, float]:
    """Inverse affine map (output pixel -> input pixel) round the centre."""
    scale = rng.uniform(*SCALE)
    turn = np.deg2rad(rng.uniform(-TURN_DEG, TURN_DEG))
    stretch = np.array([[scale, 0.0], [0.0, scale * rng.uniform(*SQUASH)]])
    shear = np.array([[1.0, rng.uniform(-SHEAR, SHEAR)], [rng.uniform(-SHEAR, SHEAR), 1.0]])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    inverse = np.linalg.inv(rotation @ shear @ stretch)
    centre = np.asarray(size) / 2
    moved = centre + rng.uniform(-SHIFT, SHIFT, 2) * np.asarray(size)
    offset = centre - inverse @ moved
    (a, b), (d, e) = inverse
    return float(a), float(b), float(offset[0]), float(d), float(e), float(offset[1])


def _jittered(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(float(rng.uniform(1 - JITTER, 1 + JITTER)))
    return picture
