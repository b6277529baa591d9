"""Every figure is drawn, says what it shows, and is the same bytes each time; without data it says so."""

from dataclasses import replace

import matplotlib as mpl
import polars as pl
import pytest
from matplotlib.figure import Figure

from study_tables import MODELS, PAIRS, write_study
from twohop.figures import CAPTIONS, CONDITIONS, FIGURES, load_study, save, styled, summarise


def words(figure: Figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(mpl.text.Text) if t.get_text())


def drawn(name, study, summary) -> Figure:
    return styled(lambda: FIGURES[name](study, summary))


@pytest.mark.parametrize("name", FIGURES)
def test_figure_names_models_and_axes(name, study, summary):
    text = words(drawn(name, study, summary))
    assert "late" in text
    assert "early" in text
    assert "(%)" in text or "logits" in text


@pytest.mark.parametrize("name", ["patching", "probes"])
def test_c02_figure_is_the_same_bytes_each_time(name, study, summary, tmp_path):
    for i in range(2):
        save(drawn(name, study, summary), tmp_path / f"{i}.svg", tmp_path / f"{i}.png", 40)
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "0.svg").read_bytes()


def test_users_own_matplotlib_settings_do_not_matter(study, summary):
    with mpl.rc_context({"font.size": 30, "axes.titlesize": 40}):
        figure = drawn("layer_sweep", study, summary)
    assert figure.axes[0].title.get_fontsize() < 15


def test_heat_maps_of_one_kind_share_their_scale(study, summary):
    figure = drawn("attribution", study, summary)
    images = [i for a in figure.axes for i in a.images]
    assert len(images) == 3 * 5
    for row in (images[:5], images[5:10], images[10:]):
        tops = {i.get_clim() for i in row}
        assert len(tops) == 1
        assert next(iter(tops))[1] == pytest.approx(max(float(i.get_array().max()) for i in row))


def test_bars_are_as_high_as_the_summary_says(study, summary):
    axes = drawn("benchmark", study, summary).axes[0]
    heights = [p.get_height() for p in axes.patches]
    want = [a[c]["all"]["value"] for a in summary["accuracy"].values() for c in CONDITIONS]
    assert heights == pytest.approx(want)


@pytest.fixture(scope="module")
def nothing_lost(tmp_path_factory):
    return load_study(write_study(tmp_path_factory.mktemp("kept"), n_entities=6, nothing_lost=True), MODELS)


def test_an_empty_set_is_said_and_not_drawn(nothing_lost):
    summary = summarise(nothing_lost, [(a, b) for a, b in PAIRS], 100, 0)
    assert "no question in this set" in words(drawn("patching", nothing_lost, summary))
    assert "no question in this set" in words(drawn("layer_sweep", nothing_lost, summary))
    assert "no lost fact to repair" in CAPTIONS["patching"](summary)
    assert "no lost fact" in CAPTIONS["layer_sweep"](summary)


def test_a_study_without_the_analyses_still_has_its_figures(study):
    bare = replace(
        study,
        scores={},
        question_scores={},
        validation={},
        outcomes={},
        curves={},
        resolution={},
        depths={},
        recovered={},
    )
    summary = summarise(bare, [], 100, 0)
    for name in FIGURES:
        assert words(drawn(name, bare, summary))
        assert CAPTIONS[name](summary)


def test_a_study_of_nobody_recognised(study):
    blind = {
        m: t.with_columns(correct=pl.lit(False), ranked_correct=pl.lit(False)) for m, t in study.recognition.items()
    }
    blank = replace(study, recognition=blind)
    summary = summarise(blank, [(a, b) for a, b in PAIRS], 100, 0)
    assert summary["accuracy"]["late"]["image"]["recognised"]["value"] is None
    assert "n/a" in words(drawn("benchmark", blank, summary))


def test_sweep_maps_have_a_row_per_site_span_and_window(study, summary):
    figure = styled(lambda: FIGURES["layer_sweep"](study, summary))
    _, late, *_ = figure.axes
    rows = [t.get_text() for t in late.get_yticklabels()]
    assert len(rows) == 2 * 2 * 2
    assert "resid_post, random span, layer alone" in rows
    (image,) = late.get_images()
    values = {(c["site"], c["span"], c["first_layer"], c["last_layer"]): c["value"] for c in cells_of(summary)}
    row = rows.index("resid_post, random span, layer alone")
    assert image.get_array()[row].tolist()[0] == values["resid_post", "random", 0, 0]
    assert image.get_array()[row].tolist()[-1] == values["resid_post", "random", 3, 3]


def cells_of(summary):
    return summary["patching"]["late"]["grid"]
