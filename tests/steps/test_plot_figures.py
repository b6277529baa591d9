"""plot_figures, as the runner calls it."""

import ast
import inspect

import pytest
from PIL import Image

from study_tables import figure_job, write_study
from twohop.figures import CAPTIONS, FIGURES
from twohop.steps import plot_figures
from twohop.store import read_json


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    job = figure_job(root, write_study(root, n_entities=6))
    assert plot_figures.run(job) == {"figures": len(FIGURES), "models": 4, "questions": 12}
    return job


def test_every_declared_output_is_written(job):
    assert set(job.outputs) == set(plot_figures.STEP.outputs)
    assert all(p.stat().st_size > 0 for p in job.outputs.values())
    assert {f"{n}_{k}" for n in FIGURES for k in ("svg", "png")} == set(plot_figures.STEP.outputs) - {
        "summary",
        "headline",
    }


def test_declaration_is_literal():
    node = next(n for n in ast.parse(inspect.getsource(plot_figures)).body if isinstance(n, ast.Assign))
    assert {k.arg: ast.literal_eval(k.value) for k in node.value.keywords}["name"] == "plot_figures"


def test_summary_holds_a_caption_for_every_figure(job):
    captions = read_json(job.outputs["summary"])["captions"]
    assert set(captions) == set(CAPTIONS) == set(FIGURES)
    assert all(c.endswith(".") for c in captions.values())


def test_pictures_can_be_opened(job):
    for name in FIGURES:
        with Image.open(job.outputs[f"{name}_png"]) as picture:
            picture.load()
            assert picture.width > 200
        assert job.outputs[f"{name}_svg"].read_text().rstrip().endswith("</svg>")
