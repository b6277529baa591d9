"""Drawing examples: seeded, without replacement, evenly over strata."""

from collections.abc import Sequence

import numpy as np


def stratified_sample(strata: Sequence[str], n: int, seed: int) -> list[int]:
    """Indices of at most `n` items, one stratum after the other in turn, so that every prefix is balanced too.

    Strata that run out leave their turns to the others.
    """
    rng = np.random.default_rng(seed)
    members = {s: [i for i, x in enumerate(strata) if x == s] for s in sorted(set(strata))}
    queues = [[m[int(j)] for j in rng.permutation(len(m))] for m in members.values()]
    turns = ((turn, order, i) for order, queue in enumerate(queues) for turn, i in enumerate(queue))
    return [i for _, _, i in sorted(turns)][:n]
