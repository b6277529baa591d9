"""Which patched rows run together: each pass begins where the earliest of its rows does, and costs its start-up."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

IDLE_TOKENS = {"cpu": 96}
"""A layer's pass takes the time of this many tokens besides those that it is given (135 million parameters, one thread:
64 to 144 differ by less than the machine does)."""
IDLE_ON_GPU = 1024


def passes(
    begins: Sequence[tuple[int, int]], n_layers: int, seq: int, most: int, written: int, device: str
) -> list[list[int]]:
    """Rows in passes, so that these take the least time of all ways to cut a sorted list of them.

    Sorted by layer and then position, or the other way round, whichever is quicker. A pass costs the layers that it
    runs times its tokens, of all rows from the earliest position on, and IDLE_TOKENS.

    Args:
        begins: per row the first layer and position that it changes; what is larger than the run changes nothing.
        n_layers: of the model.
        seq: tokens of a row.
        most: rows of a pass.
        written: tokens that are written afterwards, one at a time, through all layers.
        device: type of the device that computes.

    Returns:
        Indices of the rows; every row once.
    """
    idle = IDLE_TOKENS.get(device, IDLE_ON_GPU)
    depth = np.array([n_layers - min(layer, n_layers) for layer, _ in begins], dtype=np.int64)
    width = np.array([seq - min(position, seq) for _, position in begins], dtype=np.int64)
    orders = [np.lexsort(keys) for keys in ((-width, -depth), (-depth, -width))]
    ways = [_cut(order, depth[order], width[order], most, idle, n_layers * written) for order in orders]
    return min(ways, key=lambda way: way[0])[1]


def _cut(
    order: Int[np.ndarray, " row"],
    depth: Int[np.ndarray, " row"],
    width: Int[np.ndarray, " row"],
    most: int,
    idle: int,
    later: int,
) -> tuple[float, list[list[int]]]:
    """The least cost of consecutive parts of an order, and the parts.

    Args:
        order: the rows' numbers.
        depth: layers that each of them has to pass, in this order.
        width: tokens.
        most: rows of a part.
        idle: tokens that a pass costs besides its own.
        later: layers that every row passes afterwards, one token at a time.
    """
    n = len(order)
    best, first = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for end in range(1, n + 1):
        back = slice(max(0, end - most), end)
        layers, tokens = (np.maximum.accumulate(x[back][::-1]) for x in (depth, width))
        size = np.arange(1, len(layers) + 1)
        total = layers * (size * tokens + idle) + later * (size + idle) + best[end - size]
        chosen = int(total.argmin())
        best[end], first[end] = total[chosen], end - size[chosen]
    parts, end = list[list[int]](), n
    while end:
        parts.append(order[first[end] : end].tolist())
        end = int(first[end])
    return float(best[n]), parts[::-1]
