"""The lineage commands on a study that has really run."""

import html
import json
import re
from typing import Any

import pytest

from twohop.lineage import follow

pytestmark = pytest.mark.workflow


def _ask(tree: Any, *words: str) -> str:
    return tree.run("twohop", "lineage", *words, check=True).stdout


def test_a_figure_walks_back_to_pages_licences_revision_and_commit(finished: Any) -> None:
    text = _ask(finished, "view", "results/plot_figures/recovery.svg")
    head = finished.run("git", "rev-list", "--max-parents=0", "HEAD", check=True).stdout.strip()
    card = json.loads((finished.root / "results/prepare_model/tiny-vlm/card.json").read_text())
    assert f"commit {head[:10]}" in text
    assert "https://github.com/googlefonts/noto-emoji" in text
    assert "https://www.geonames.org/countries/" in text
    assert f"({len(card['files'])} files)" in text
    assert "!" not in text


def test_each_number_of_the_report_can_be_viewed(finished: Any) -> None:
    page = (finished.root / "results/render_report/report.html").read_text()
    summary = json.loads((finished.root / "results/plot_figures/summary.json").read_text())
    found = re.findall(r'<data value="([^"]*)" data-record="([^"]*)">', page)
    assert len(found) > 100
    for value, record in found:
        assert repr(follow(summary, html.unescape(record).partition("#")[2], "summary")) == value
    value, record = found[0]
    assert _ask(finished, "view", record).startswith(f"{value}  at ")


def test_a_picture_takes_its_questions_and_the_report_with_it(finished: Any) -> None:
    found = json.loads(_ask(finished, "view", "results/render_report/report.html", "--json"))
    picture = next(iter(found["pictures"].values()))[0]["picture_id"]
    text = _ask(finished, "find", "--input", picture)
    assert "results/render_report/report.html" in text
    assert "questions that show it: tiny-control: flags:" in text


def test_a04_an_edited_param_is_named_and_compared_after_the_run(finished: Any) -> None:
    assert "are what their records say" in _ask(finished, "check", "--cache")
    old = json.loads((finished.root / "results/plot_figures/lineage.json").read_text())["run_id"]
    text = (finished.root / "params.yaml").read_text()
    at = text.index("n_boot:", text.index("plot_figures:"))
    (finished.root / "params.yaml").write_text(text[:at] + re.sub(r"\d+", "123", text[at:], count=1))
    told = finished.run("twohop", "lineage", "check")
    assert told.returncode == 2
    assert re.search(r"results/plot_figures: out of date: params plot_figures\.n_boot: \d+ -> 123", told.stderr)
    finished.snakemake()
    for before in (old[:8], "HEAD:results/plot_figures/summary.json"):
        assert "plot_figures.n_boot: " in _ask(finished, "diff", before, "results/plot_figures/summary.json")


def test_the_study_can_be_drawn_and_exported(finished: Any) -> None:
    assert "lineage.html" in _ask(finished, "render")
    n_runs = len(list((finished.root / "results").rglob("lineage.json")))
    assert n_runs > 20
    assert f"{n_runs} runs" in _ask(finished, "export", "crate")
    assert (finished.root / "crate/ro-crate-metadata.json").exists()
