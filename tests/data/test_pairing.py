from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.data import Twin, can_pair, draw_entities, folded_answers, pair_questions, split_entities
from twohop.data._pairing import match_within

FEW = settings(max_examples=50, deadline=None)  # the machine may be busy: no deadline


@st.composite
def questions(draw, largest=16):
    kinds = st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"), st.booleans(), st.integers(1, 2), st.booleans())
    twins = []
    for i, (answer, also, capital, tokens, shared) in enumerate(draw(st.lists(kinds, max_size=largest))):
        relation = "capital" if capital else "language"
        first = 0 if shared else ord(answer)
        twins.append(Twin(f"e{i}/{relation}", f"e{i}", relation, tokens, first, frozenset({answer, also})))
    return twins


def smallest_cap(twins):
    """By exhaustion: the smallest number of uses that serves every question which has an option."""
    options = {i: [j for j, b in enumerate(twins) if can_pair(a, b)] for i, a in enumerate(twins)}
    options = {i: js for i, js in options.items() if js}

    def feasible(keys, cap, used):
        if not keys:
            return True
        for j in options[keys[0]]:
            if used[j] < cap:
                used[j] += 1
                if feasible(keys[1:], cap, used):
                    return True
                used[j] -= 1
        return False

    keys = sorted(options, key=lambda i: len(options[i]))
    return next(cap for cap in range(len(twins) + 1) if feasible(keys, cap, Counter()))


@FEW
@given(questions(), st.integers(0, 3))
def test_every_pair_is_allowed_and_none_is_missed(twins, seed):
    by_id = {t.question_id: t for t in twins}
    chosen = pair_questions(twins, seed)
    assert set(chosen) == set(by_id)
    for question, twin in chosen.items():
        a = by_id[question]
        if twin is None:
            assert not any(can_pair(a, b) for b in twins)
        else:
            b = by_id[twin]
            assert a.relation == b.relation
            assert a.n_name_tokens == b.n_name_tokens
            assert a.entity_id != b.entity_id
            assert a.first_token != b.first_token
            assert not a.answers & b.answers


@FEW
@given(questions(), st.randoms(), st.integers(0, 3))
def test_order_of_the_table_does_not_matter_the_seed_alone_does(twins, random, seed):
    shuffled = list(twins)
    random.shuffle(shuffled)
    assert pair_questions(twins, seed) == pair_questions(shuffled, seed)


@FEW
@given(questions(largest=8), st.integers(0, 3))
def test_no_twin_is_used_more_often_than_it_must(twins, seed):
    for key in {(t.relation, t.n_name_tokens) for t in twins}:
        group = [t for t in twins if (t.relation, t.n_name_tokens) == key]
        used = Counter(v for v in pair_questions(group, seed).values() if v is not None)
        assert max(used.values(), default=0) == smallest_cap(group)


def test_other_seeds_pair_otherwise():
    twins = [Twin(f"e{i}/capital", f"e{i}", "capital", 1, i, frozenset({str(i)})) for i in range(12)]
    assert len({tuple(sorted(pair_questions(twins, seed).items())) for seed in range(5)}) > 1


def test_matching_moves_others_out_of_the_way():
    assert match_within({0: [0, 1], 1: [0], 2: [1, 2]}, 1) == {0: 1, 1: 0, 2: 2}
    assert match_within({0: [0], 1: [0]}, 1) is None
    assert match_within({0: [0], 1: [0]}, 2) == {0: 0, 1: 0}
    assert match_within({}, 1) == {}


def test_answers_in_common_forbid_a_pair_whatever_their_spelling():
    a = Twin("a", "a", "capital", 1, 1, folded_answers(["Hindi", "English"]))
    b = Twin("b", "b", "capital", 1, 2, folded_answers(["ENGLISH."]))
    assert not can_pair(a, b)


ids = st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=40)


@FEW
@given(ids, st.floats(0, 0.99), st.integers(0, 5))
def test_split_is_a_partition_of_the_asked_size(names, share, seed):
    splits = split_entities(names, share, seed)
    assert set(splits) == set(names)
    assert set(splits.values()) <= {"dev", "test"}
    assert sum(s == "dev" for s in splits.values()) == round(share * len(names))
    assert splits == split_entities(names[::-1], share, seed)


@FEW
@given(ids, st.integers(0, 40), st.integers(0, 5))
def test_a_larger_draw_keeps_the_smaller_one(names, n, seed):
    drawn = draw_entities(names, n, seed)
    assert len(drawn) == min(n, len(names))
    assert set(drawn) <= set(draw_entities(names[::-1], n + 1, seed))


@pytest.mark.parametrize("seed", range(3))
def test_draw_depends_on_the_seed(seed):
    names = [str(i) for i in range(50)]
    assert draw_entities(names, 20, seed) != draw_entities(names, 20, seed + 1)
