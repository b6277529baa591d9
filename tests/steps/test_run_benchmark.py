"""The benchmark on tiny models: what is asked, what is kept, what survives a kill."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from small_study import BENCHMARK, NAMES, STYLES, job, make_card, make_study

from twohop.analysis import grade
from twohop.models import Model, Prompt, open_model
from twohop.steps import run_benchmark
from twohop.steps._step import Job
from twohop.store import read_json, read_table, schemas


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(autouse=True)
def _cache(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOHOP_CACHE", str(study / "cache"))
    torch.set_num_threads(1)


def _job(study: Path, model: str) -> Job:
    inputs = {n: study / f"{n}.parquet" for n in ("entities", "questions", "manifest")}
    inputs |= {"pictures": study / "pictures.zip", "card": make_card(study, model)}
    return job("run_benchmark", model, study, BENCHMARK, inputs, *run_benchmark.STEP.outputs)


def test_a_backbone_is_asked_by_name_only(study: Path) -> None:
    call = _job(study, "lm")
    summary = run_benchmark.run(call)
    answers = read_table(call.output("answers"), schemas.ANSWERS)
    assert answers["condition"].unique().to_list() == ["text"]
    assert answers["prompt"][0] == "Consider the country France. The capital of this country is"
    assert read_table(call.output("recognition"), schemas.RECOGNITION).is_empty()
    assert summary["done"] == 8
    assert set(read_json(call.output("metrics"))["accuracy"]) == {"text"}


def test_a_vlm_gets_three_conditions_and_its_recognition(study: Path) -> None:
    call = _job(study, "eyes")
    run_benchmark.run(call)
    answers = read_table(call.output("answers"), schemas.ANSWERS)
    assert answers.group_by("condition").len().sort("condition").rows() == [("blank", 8), ("image", 8), ("text", 8)]
    recognition = read_table(call.output("recognition"), schemas.RECOGNITION)
    asked = recognition.group_by("style", "prompt_id").len().sort("style", "prompt_id").rows()
    assert asked == [("1x1", 0, 4), ("circle", 0, 4), ("noto_waved", 0, 4), ("noto_waved", 1, 4)], (
        "the held-out source is asked under every prompt"
    )
    assert set(recognition["ranked_name"]) <= set(NAMES.values())
    metrics = read_json(call.output("metrics"))
    assert set(metrics["accuracy"]["image"]) == {"all", "capital", "continent"}
    assert set(metrics["recognition"]) == set(STYLES)
    assert metrics["accuracy"]["blank"]["all"]["n"] == 8
    assert metrics["grounded"]["value"] == pytest.approx(1 - metrics["accuracy"]["blank"]["all"]["value"])


def test_answers_are_the_model_s_and_grades_those_of_the_answers(study: Path) -> None:
    """Asked one by one, without batches or parts, the model says the same."""
    call = _job(study, "eyes")
    run_benchmark.run(call)
    answers = read_table(call.output("answers"), schemas.ANSWERS)
    model, questions = open_model(call.input("card")), read_table(call.input("questions"), schemas.QUESTIONS)
    for q in questions.head(4).iter_rows(named=True):
        said = model.generate(model.batch([Prompt(q["before"], q["name"], q["after"])]), 4)[0]
        row = answers.row(
            by_predicate=(pl.col("question_id") == q["question_id"]) & (pl.col("condition") == "text"), named=True
        )
        assert row["answer_text"] == said
        assert row["matched_alias"] == grade(said, q["answer_aliases"])
        assert row["correct"] == (row["matched_alias"] is not None)


def test_one_wording_from_a_blank_picture_is_asked_once_and_copied(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    for name in ("generate", "name_answers"):
        real = getattr(Model, name)
        counted = lambda self, b, *more, real=real: (asked.append(len(b)), real(self, b, *more))[1]  # noqa: E731
        monkeypatch.setattr(Model, name, counted)
    call = _fresh(_job(study, "eyes"), tmp_path)
    run_benchmark.run(call)
    blank = read_table(call.output("answers"), schemas.ANSWERS).filter(condition="blank")
    assert blank.group_by("relation").agg(pl.col("answer_text").n_unique())["answer_text"].to_list() == [1, 1]
    assert sum(asked) == 8 + 8 + 2 + 4 * 4, "text, image, two blank wordings, three styles and a second prompt"


def test_c1_killed_anywhere_it_goes_on_and_writes_the_same_bytes(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _fresh(_job(study, "eyes"), tmp_path / "whole")
    run_benchmark.run(whole)
    cut = _fresh(_job(study, "eyes"), tmp_path / "cut")
    real, calls = Model.generate, 0

    def dies(self: Model, batch: Any, n: int) -> list[str]:
        nonlocal calls
        calls += 1
        if calls % 5 == 0:
            raise KeyboardInterrupt
        return real(self, batch, n)

    monkeypatch.setattr(run_benchmark.LOG, "disabled", True)
    with monkeypatch.context() as patch:
        patch.setattr(Model, "generate", dies)
        for _ in range(30):
            try:
                run_benchmark.run(cut)
                break
            except KeyboardInterrupt:
                assert not cut.output("answers").exists()
        else:
            pytest.fail("no progress between the kills")
    for name in run_benchmark.STEP.outputs:
        assert cut.output(name).read_bytes() == whole.output(name).read_bytes()


def _fresh(call: Job, folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {name: folder / name for name in call.outputs}
    return Job(call.step, call.model, call.params, call.inputs, outputs, folder / "work")
