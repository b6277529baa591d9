"""Numbers keep their place through formatting and scaling, and behave as numbers otherwise."""

import pytest

from twohop.figures import CAPTIONS, END, MIDDLE, START, cited, words


def mark(pointer, value, text):
    return f"{START}{pointer} {value}{MIDDLE}{text}{END}"


def test_a_number_is_marked_with_pointer_exact_value_and_what_is_shown():
    tree = cited({"a/b": {"x~y": [0.125, 7]}, "text": "t", "flag": True, "none": None})
    share, count = tree["a/b"]["x~y"]
    assert f"{100 * share:.0f} %" == mark("/a~1b/x~0y/0", 0.125, "12") + " %"
    assert f"{share * 100:+.1f}" == mark("/a~1b/x~0y/0", 0.125, "+12.5")
    assert str(count) == f"{count}" == mark("/a~1b/x~0y/1", 7, "7")
    assert (tree["text"], tree["flag"], tree["none"]) == ("t", True, None)
    assert (share, count, share < 0.2, count + 1) == (0.125, 7, True, 8)


@pytest.mark.parametrize(("p", "text"), [(0.0001, "< 0.001"), (0.0123, "0.012"), (0.5, "0.50")])
def test_p_values_are_marked_also_when_only_a_bound_is_shown(p, text):
    assert mark("/p", p, text) in words.p_words(cited({"p": p})["p"])
    assert text in words.p_words(p)


def test_sentences_from_marked_numbers_are_the_same_without_the_marks(summary):
    for name, caption in CAPTIONS.items():
        plain = caption(summary)
        marked = caption(cited(summary))
        while START in marked:
            at = marked.index(START)
            middle, end = marked.index(MIDDLE, at), marked.index(END, at)
            marked = marked[:at] + marked[middle + 1 : end] + marked[end + 1 :]
        assert marked == plain, name
