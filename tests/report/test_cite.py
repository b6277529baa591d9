"""Cited numbers become elements; nothing else in a text can."""

from twohop.figures import END, MIDDLE, START
from twohop.report._cite import Citer

RUN = {"step": "plot_figures", "run_id": "0123456789", "outputs": [{"name": "summary"}]}


def test_a_number_becomes_an_element_with_its_id():
    cite = Citer({"a,c": {"value": 0.25}}, [RUN])
    text = f"<b> {100 * cite.summary['a,c']['value']:.0f} %"
    assert cite.html(text) == (
        '&lt;b&gt; <data value="0.25" data-record="01234567/summary.json#/a,c/value">25</data> %'
    )
    assert cite.plain(text) == "<b> 25 %"


def test_a_key_cannot_break_out_of_the_attribute():
    cite = Citer({'"><script>': 1}, [RUN])
    (number,) = cite.summary.values()
    assert "<script>" not in cite.html(str(number))


def test_text_without_marks_is_only_escaped():
    assert Citer({}, []).html("a < b") == "a &lt; b"
    assert Citer({}, []).html(f"{START}{MIDDLE}{END}") == f"{START}{MIDDLE}{END}"
