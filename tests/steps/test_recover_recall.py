"""Recovery by prompting on tiny models."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from small_study import BENCHMARK, NAMES, job, make_card, make_study

from twohop.analysis import cut_name
from twohop.errors import ConfigError
from twohop.models import Model, Prompt, open_model
from twohop.steps import recover_recall, run_benchmark
from twohop.steps._step import Job
from twohop.store import read_json, read_table, schemas

PARAMS: dict[str, Any] = {
    "recover_recall": {
        "name_then_answer": "Consider the country {entity}. This country is called",
        "max_new_tokens": 6,
        "batch": 4,
        "n_boot": 100,
        "seed": 0,
    },
    "run_benchmark.max_new_tokens": 4,
}


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Job:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        study = make_study(tmp_path_factory.mktemp("study"))
        patch.setenv("TWOHOP_CACHE", str(study / "cache"))
        tables = {n: study / f"{n}.parquet" for n in ("entities", "questions", "manifest")}
        tables["pictures"] = study / "pictures.zip"
        answers: dict[str, Path] = {}
        for model in ("lm", "eyes"):
            inputs = {**tables, "card": make_card(study, model)}
            bench = job("run_benchmark", model, study, BENCHMARK, inputs, *run_benchmark.STEP.outputs)
            run_benchmark.run(bench)
            answers[model] = bench.output("answers")
        inputs = {**tables, "card": make_card(study, "eyes"), "answers": answers["eyes"]}
        inputs["backbone_answers"] = answers["lm"]
        made = job("recover_recall", "eyes", study, PARAMS, inputs, *recover_recall.STEP.outputs)
        made_prompts.clear()
        real = Model.share
        patch.setattr(Model, "share", lambda self, p, n: (made_prompts.extend(p), real(self, p, n))[1])
        recover_recall.run(made)
        recovered_model.append(open_model(made.input("card")))
        return made


made_prompts: list[Prompt] = []
recovered_model: list[Model] = []


def _strategy(call: Job, name: str) -> pl.DataFrame:
    return read_table(call.output("recovered"), schemas.RECOVERED).filter(strategy=name)


def test_every_question_under_every_strategy(call: Job) -> None:
    counts = read_table(call.output("recovered"), schemas.RECOVERED).group_by("strategy").len()
    assert dict(counts.iter_rows()) == dict.fromkeys(recover_recall.STRATEGIES, 8)


def test_direct_is_the_benchmark_s_own(call: Job) -> None:
    image = read_table(call.input("answers"), schemas.ANSWERS).filter(condition="image")
    direct = _strategy(call, "direct")
    assert direct["answer_text"].to_list() == image["answer_text"].to_list()
    assert direct["written_name"].null_count() == 8


def test_the_name_is_written_once_per_picture_and_stands_in_the_next_prompt(call: Job) -> None:
    rows = _strategy(call, "name_then_answer")
    per_entity = rows.group_by("entity_id").agg(pl.col("written_name").n_unique())
    assert per_entity["written_name"].to_list() == [1] * 4
    model = recovered_model[0]
    asked = [p for p in made_prompts if p.picture is not None]
    names, prompts = asked[:4], asked[4:12]
    text = model.generate(model.batch([names[0]]), 6)[0]
    assert rows["written_name"][0] == cut_name(text)
    expected = f". This country is called {rows['written_name'][0]}. The capital of this country is"
    assert prompts[0].after == expected
    assert prompts[0].before == "Consider the country "
    assert prompts[0].picture is not None
    assert torch.equal(prompts[0].picture.features, names[0].picture.features)


def test_the_oracle_gives_the_true_name_with_the_picture(call: Job) -> None:
    rows = _strategy(call, "oracle_name")
    assert rows["written_name"].to_list() == [n for n in NAMES.values() for _ in range(2)]
    assert rows["name_correct"].all()
    last = made_prompts[-8]
    assert last.after == ". This country is called France. The capital of this country is"
    assert last.picture is not None


def test_two_turns_puts_the_written_name_where_the_true_one_would_be(call: Job) -> None:
    rows = _strategy(call, "two_turns")
    prompts = [p for p in made_prompts if p.picture is None]
    assert len(prompts) == 8
    for prompt, written in zip(prompts, rows["written_name"], strict=True):
        assert prompt.entity == written or (written == "" and prompt.entity is None)


def test_metrics_hold_accuracy_share_closed_and_the_split_by_name(call: Job) -> None:
    metrics = read_json(call.output("metrics"))
    found = metrics["strategies"]["name_then_answer"]
    assert found["name_right"]["n"] + found["name_wrong"]["n"] == 8
    assert set(found["closed_share"]) == {"value", "low", "high", "n_entities"}
    assert metrics["backbone"]["all"]["n"] == 8
    assert "name_right" not in metrics["strategies"]["oracle_name"]


def test_a_backbone_cannot_be_recovered(call: Job) -> None:
    params = {**call.params, "models.eyes": {**call.params["models.eyes"], "role": "control"}}
    with pytest.raises(ConfigError, match="eyes is no vlm"):
        recover_recall.run(Job(call.step, call.model, params, call.inputs, call.outputs, call.work))
