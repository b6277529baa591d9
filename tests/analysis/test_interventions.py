import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twohop.analysis import Intervention, digest_of
from twohop.errors import DataError

PATCH = Intervention("q", "heuristic", "backbone", "text", "q", "mlp_write", (0, 1), (0, 1), "heuristic", 3, 2, 7)


@st.composite
def parts(draw: st.DrawFn) -> tuple[object, ...]:
    question, other = draw(st.text(min_size=1)), draw(st.text(min_size=1))
    pairs = draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=4))
    donor = draw(st.sampled_from(["backbone", "own", "mean", "zero"]))
    named = donor in ("backbone", "own")
    layers = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
    place = draw(st.integers(0, 600)), draw(st.integers(1, 30))
    site = draw(st.sampled_from(["resid_post", "mlp_write", "attn_write"]))
    who = ("text", other) if named else (None, None)
    return question, "sweep", donor, *who, site, *layers, "random", *place, draw(st.integers(0, 9))


@given(parts())
def test_record_gives_the_same_intervention_again(given_parts: tuple):
    made = Intervention(*given_parts)
    again = Intervention.from_record(made.record())
    assert again == made
    assert hash(again) == hash(made)
    assert again.digest == made.digest
    assert "\n" not in made.record()


@given(parts(), parts())
def test_digests_are_equal_for_equal_interventions_only(first: tuple, second: tuple):
    a, b = Intervention(*first), Intervention(*second)
    assert (a.digest == b.digest) == (a == b)


def test_digest_is_the_same_on_every_machine():
    # a change here makes every stored digest mean something else
    assert PATCH.digest == "6a117011e95e8fc6"


@pytest.mark.parametrize(
    "change",
    [
        {"question_id": "p"},
        {"name": "sweep"},
        {"donor": "own"},
        {"donor_id": "p"},
        {"site": "resid_post"},
        {"donor_layers": (0, 2)},
        {"receiver_layers": (1, 2)},
        {"span": "random"},
        {"span_start": 4},
        {"span_length": 1},
        {"seed": 8},
    ],
)
def test_every_part_changes_the_digest(change: dict[str, object]):
    assert replace(PATCH, **change).digest != PATCH.digest


def test_digest_of_several_depends_on_their_order():
    other = replace(PATCH, seed=8)
    assert digest_of([PATCH, other]) != digest_of([other, PATCH])
    assert digest_of([PATCH]) != digest_of([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"donor_layers": (0,)}, "1 layers are read and 2 written"),
        ({"donor": "nothing"}, "come together"),
        ({"donor_layers": (), "receiver_layers": ()}, "come together"),
        ({"donor_id": None}, "donor question None"),
        ({"donor": "mean"}, "donor mean with donor question q"),
        ({"donor_run": None}, "donor run None"),
        ({"donor_run": "image"}, "own"),
        ({"donor": "own", "donor_run": "image", "donor_id": "p"}, "own"),
        ({"span_start": -1}, "from -1"),
        ({"span_length": 0}, "span of 0"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        replace(PATCH, **change)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "{not json", json.dumps({"question_id": "q"}), PATCH.record().replace("mlp_", "head_")],
)
def test_what_is_no_record_is_refused(text: str):
    with pytest.raises(DataError, match="no record of an intervention"):
        Intervention.from_record(text)
