"""render_report: one page that needs nothing else and lets nothing in."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from study_tables import figure_job, report_job, write_study
from twohop.errors import ArtifactError
from twohop.figures import CAPTIONS
from twohop.lineage import Book, follow, read_record, read_value, resolve
from twohop.steps import plot_figures, render_report
from twohop.store import read_json


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    inputs = write_study(root, n_entities=6)
    figures = figure_job(root, inputs)
    plot_figures.run(figures)
    return report_job(root, inputs, figures)


@pytest.fixture(scope="module")
def page(job):
    render_report.run(job)
    return job.outputs["report"].read_text(encoding="utf-8")


class Tags(HTMLParser):
    VOID = ("meta", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")


def test_page_is_well_formed_with_unique_ids(page):
    tags = Tags(page)
    assert tags.faults == []
    assert tags.stack == []
    ids = [a["id"] for _, a in tags.seen if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in tags.seen if t == "a"]
    assert all(link[1:] in ids for link in links if not link.startswith("https://"))


def test_page_asks_for_nothing(page):
    for tag, attrs in Tags(page).seen:
        given = {n: attrs[n] for n in ("src", "href", "data", "action", "srcset", "poster") if attrs.get(n)}
        for value in given.values():
            out = tag == "a" and attrs.get("rel") == "noreferrer" and value == "https://credits.example/1"  # on a click
            assert out or value.startswith("#" if tag == "a" else "data:"), (tag, attrs)
    assert "default-src 'none'" in page
    assert not re.search(r"url\((?!data:)|@import|fetch\(|XMLHttpRequest", page)


def test_every_figure_is_there_with_alternative_text_and_caption(page):
    images = [a for t, a in Tags(page).seen if t == "img"]
    assert len(images) == len(CAPTIONS)
    assert all(len(a["alt"]) > 40 for a in images)
    assert page.count("<figcaption>") == len(CAPTIONS)


def test_text_from_models_and_tables_is_escaped(page):
    assert "Where &lt;is&gt; it lost?" in page
    assert "<b>&</b>" not in page
    assert "No &lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "<script>alert" not in page


def test_headings_do_not_skip_a_level(page):
    levels = [int(t[1]) for t, _ in Tags(page).seen if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_answers_are_cut_where_the_params_say(page):
    assert "The first 50 of 120 answers" in page
    body = page[page.index('<table id="answers">') :]
    assert body[: body.index("</table>")].count("<tr") == 51


def test_answers_show_their_pictures(page):
    assert 'role="img" aria-label="picture of Land' in page
    assert ".p0{background-image:url(data:image/png;base64," in page


def test_provenance_links_a_file_to_the_run_that_made_it(page):
    assert 'id="run-prepare_model-lm"' in page
    assert 'href="#run-prepare_model-lm">made by' in page
    assert "12" * 32 in page


class Numbers(HTMLParser):
    """`data` elements: attributes and text; and the text outside of them, by section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.outside: list[str] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "data":
            self.open = True
            self.found.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.open = self.open and tag != "data"

    def handle_data(self, data):
        if self.open:
            attrs, text = self.found.pop()
            self.found.append((attrs, text + data))
        else:
            self.outside.append(data)


def _shows(text: str, value: float) -> bool:
    """Whether a rounded text, perhaps in percent, stands for a value."""
    if text == "< 0.001":
        return value < 0.001
    decimals = len(text.partition(".")[2])
    return any(abs(float(text) - scale * value) <= 0.5 * 10**-decimals + 1e-9 for scale in (1, 100))


def test_every_number_resolves_to_the_value_shown(job, page):
    summary = read_json(job.input("summary"))
    numbers = Numbers(page).found
    assert len(numbers) > 300
    for attrs, text in numbers:
        run, _, pointer = attrs["data-record"].partition("/summary.json#")
        value = follow(summary, pointer, "summary")
        assert run == "plot_fig"
        assert repr(value) == attrs["value"]
        assert _shows(text, value), (attrs, text)


def test_the_id_of_a_number_on_the_page_is_one_that_view_takes(job, page):
    record = read_record(job.input("summary").with_name("lineage.json"))
    attrs, _ = Numbers(page).found[-1]
    target = resolve(attrs["data-record"], Book([record]))
    assert repr(read_value(target)) == attrs["value"]


def test_no_number_of_the_answer_or_of_a_caption_is_without_an_id(page):
    answer = page[page.index('id="h-answer"') : page.index('id="figures"')]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    for text in (answer[: answer.index('<p class="note">')], *captions):
        left = " ".join(Numbers(text).outside)
        for fixed in ("90 %", "95 %", "0 first layer, 1 last"):
            left = left.replace(fixed, "")
        assert not re.search(r"\d", left), left


def test_cells_with_percentages_carry_ids(page):
    for cell in re.findall(r'<td class="n">(.*?)</td>', page):
        assert "<data " in cell


def test_graded_answers_carry_the_record_of_their_run(page):
    assert '<tr data-record="run_benc/answers.parquet">' in page


def test_without_the_record_of_the_summary_numbers_have_no_id(job, tmp_path):
    target = tmp_path / "report.html"
    lineages = tuple(p for p in job.inputs["lineages"] if "plot_figures" not in str(p))
    render_report.run(replace(job, inputs={**job.inputs, "lineages": lineages}, outputs={"report": target}))
    text = target.read_text(encoding="utf-8")
    assert "<data " not in text
    assert not re.search("[\ue000-\ue002]", text)


def test_no_mark_is_left_on_the_page(page):
    assert not re.search("[\ue000-\ue002]", page)


def test_page_is_the_same_each_time(job, page):
    render_report.run(job)
    assert job.outputs["report"].read_text(encoding="utf-8") == page


def test_broken_lineage_record_is_named(job, tmp_path):
    bad = tmp_path / "lineage.json"
    bad.write_text("{}")
    with pytest.raises(ArtifactError, match="not a lineage record"):
        render_report.run(replace(job, inputs={**job.inputs, "lineages": (bad,)}))


def test_nothing_is_written_when_an_input_is_broken(job, tmp_path):
    bad = tmp_path / "summary.json"
    bad.write_text("{")
    target = tmp_path / "report.html"
    with pytest.raises(ArtifactError):
        render_report.run(replace(job, inputs={**job.inputs, "summary": (bad,)}, outputs={"report": target}))
    assert not target.exists()


def test_funnel_is_a_table_of_the_page(page):
    table = page.split("From the source&#39;s entities to those asked about</caption>", 1)[1].split("</table>", 1)[0]
    assert "no &lt;picture&gt;" in table
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == ["9", "3", "6", "x:1, x:2"]


def test_gallery_shows_every_picture_with_its_credit(page):
    gallery = page.split('<ul class="gallery">', 1)[1].split("</ul>", 1)[0]
    assert gallery.count("<li>") == gallery.count('role="img"') == 6
    assert "Ann &lt;Bo&gt;, MIT" in gallery
    assert gallery.count('<a href="https://credits.example/1" rel="noreferrer">') == 1
    assert "javascript:alert(1)" in gallery  # as text
    assert 'href="javascript' not in gallery


def test_study_with_one_picture_of_each_entity_has_a_page_without_probes(tmp_path):
    inputs = write_study(tmp_path, n_entities=6, one_picture=True)
    figures = figure_job(tmp_path, inputs)
    plot_figures.run(figures)
    made = report_job(tmp_path, inputs, figures)
    render_report.run(made)
    text = made.outputs["report"].read_text(encoding="utf-8")
    assert "No probe was trained: that needs a second picture of each entity" in text
    assert Tags(text).faults == []
