"""Rows in passes: every row once, never more than fit, and never slower than the plain ways to cut the list."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.models._batch import rows_at_once
from twohop.models._plan import IDLE_TOKENS, passes

N_LAYERS, SEQ = 6, 9
ROWS = st.lists(st.tuples(st.integers(0, N_LAYERS + 1), st.integers(0, SEQ + 1)), max_size=30)


def cost(begins: list[tuple[int, int]], parts: list[list[int]], written: int) -> int:
    """Layers times tokens, counted by hand."""
    total = 0
    for part in parts:
        layers = N_LAYERS - min(begins[i][0] for i in part)
        tokens = SEQ - min(begins[i][1] for i in part)
        idle = IDLE_TOKENS["cpu"]
        total += max(layers, 0) * (len(part) * max(tokens, 0) + idle) + written * N_LAYERS * (len(part) + idle)
    return total


@settings(deadline=None)
@given(ROWS, st.integers(1, 7), st.sampled_from([0, 3]))
def test_every_row_once_and_no_slower_than_by_the_plain_ways(
    begins: list[tuple[int, int]], most: int, written: int
) -> None:
    found = passes(begins, N_LAYERS, SEQ, most, written, "cpu")
    assert sorted(i for part in found for i in part) == list(range(len(begins)))
    assert all(1 <= len(part) <= most for part in found)
    order = sorted(range(len(begins)), key=begins.__getitem__)
    plain = [[i] for i in order], [order[i : i + most] for i in range(0, len(order), most)]
    assert cost(begins, found, written) <= min(cost(begins, parts, written) for parts in plain)


def test_a_sweep_is_cut_by_position_where_rows_are_few() -> None:
    """A pass of all positions of a layer would run from the first position on for all of them."""
    begins = list(product(range(N_LAYERS), (0, 100, 190)))
    found = passes(begins, N_LAYERS, 200, 32, 0, "cpu")
    assert all(len({begins[i][1] for i in part}) == 1 for part in found)


def test_one_pass_where_a_pass_itself_costs_the_most() -> None:
    begins = list(product(range(N_LAYERS), (0, 5)))
    assert len(passes(begins, N_LAYERS, SEQ, 32, 0, "cuda")) == 1
    assert len(passes(begins, N_LAYERS, SEQ, 32, 8, "cpu")) == 1


def test_short_rows_fill_a_pass() -> None:
    assert rows_at_once(32, 39) == 128
    assert rows_at_once(32, 159) == 32
    assert rows_at_once(32, 4000) == 32
    assert rows_at_once(1, 4000) == 1
