from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny_patching
import torch
from tiny_patching import LAYERS, TOKENS, Study

from twohop.analysis import Intervention
from twohop.errors import ModelError
from twohop.models import Model, Patch, Site
from twohop.models._sites import Decoder, Tap
from twohop.steps import patch_activations
from twohop.steps._intervening import Donors, Engine
from twohop.store import ActivationReader, read_json, read_table, schemas, write_table

PARAMS = {
    "donor_layers": 2,
    "max_examples": 6,
    "random_spans": 5,
    "sweep_layers": [1, 4, 30],
    "sweep_sites": ["mlp_write"],
    "back_pairs": [[3, 1], [2, 0], [12, 4]],
    "sweep_examples": 3,
    "grid_examples": 2,
    "max_new_tokens": TOKENS,
    "n_boot": 200,
    "batch": 4,
    "seed": 0,
}
FEW = {"max_examples": 2, "sweep_examples": 1, "grid_examples": 1}
INPUTS = {
    "questions": "questions.parquet",
    "manifest": "manifest.parquet",
    "pictures": "pictures.zip",
    "card": "tiny-vlm-card.json",
    "activations": "tiny-vlm-activations.h5",
    "answers": "answers.parquet",
    "recognition": "recognition.parquet",
    "spans": "spans.parquet",
    "backbone_activations": "tiny-llm-activations.h5",
    "backbone_answers": "backbone-answers.parquet",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOHOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        made = tiny_patching.build(tmp_path_factory.mktemp("study"))
        _write_spans(made)
        yield made


def _write_spans(study: Study) -> None:
    """Scores that peak at position 2 of every question but the last two, which are not scored."""
    rows = []
    for i in study.questions["question_id"].to_list()[:-2]:
        batch = study.vlm.batch([study.prompt(i, "image")])
        n = batch.groups["last"].shape[1] - batch.spans[0][0]
        peak = np.eye(n)[2] + 0.01
        rows += [{"question_id": i, "layer": layer, "position_scores": peak.tolist()} for layer in range(LAYERS)]
    write_table(study.path("spans.parquet"), pl.DataFrame(rows, schema=schemas.SPANS), schemas.SPANS)


def job_of(study: Study, work: Path, inputs: dict[str, str] | None = None, **params: object):
    return study.job("patch_activations", "tiny-vlm", PARAMS | params, INPUTS | (inputs or {}), work)


@pytest.fixture(scope="module")
def done(study: Study, tmp_path_factory: pytest.TempPathFactory):
    job = job_of(study, tmp_path_factory.mktemp("done"))
    summary = patch_activations.run(job)
    return job, summary, read_table(job.output("outcomes"), schemas.OUTCOMES)


def test_every_intervention_has_its_answers(done):
    _, summary, outcomes = done
    counts = {
        name: dict(outcomes.filter(pl.col("set") == name).group_by("intervention").len().iter_rows())
        for name in ("lost", "kept")
    }
    both = dict.fromkeys(("none", "heuristic", "zero", "own_text", "mean", "wrong_entity"), 6) | {"random": 30}
    # curve: 2 depths of 3 questions; grid: 3 windows (0, 0-3, 3) of 2 questions at 3 spans, less the curve's 2
    assert counts["lost"] == both | {"back_patch": 2 * 6, "sweep": 2 * 3 + 3 * 2 * 3 - 2 * 2}
    assert counts["kept"] == both | {"back_patch": 6}
    assert summary == {"lost": 6, "kept": 6, "answers": outcomes.height}


def test_records_are_unique_and_named_by_their_digest(done):
    _, _, outcomes = done
    found = [Intervention.from_record(r) for r in outcomes["record"]]
    assert [i.digest for i in found] == outcomes["digest"].to_list()
    assert outcomes["digest"].n_unique() == outcomes.height


def test_a_row_is_made_again_from_its_record_alone(study: Study, done):
    _, _, outcomes = done
    rows = outcomes.unique("intervention", keep="last", maintain_order=True)
    prompts = {q: study.prompt(q, "image") for q in rows["question_id"].unique()}
    with (
        ActivationReader(study.path("tiny-llm-activations.h5")) as backbone,
        ActivationReader(study.path("tiny-vlm-activations.h5")) as own,
    ):
        engine = Engine(study.vlm, Donors(backbone, own), prompts, 1)
        for row in rows.iter_rows(named=True):
            answer = study.questions.filter(pl.col("question_id") == row["question_id"])["answer"].to_list()
            again = Intervention.from_record(row["record"])
            (reply,) = engine.replies([again], {row["question_id"]: answer}, TOKENS)
            assert row["answer_text"] in (reply.text, None)
            assert reply.logprobs[0] == pytest.approx(row["right_logprob"], abs=1e-4)


def test_engine_patching_itself_changes_no_logit(done):
    found = read_json(done[0].output("metrics"))["self_patch"]
    assert 0 <= found.pop("largest_shared_change") < 1e-5
    assert found == {
        "largest_logit_change": 0.0,
        "n_questions": 4,
        "sites": ["resid_post", "mlp_write"],
        "n_layers": LAYERS,
    }


def test_engine_that_patches_something_else_is_found_out(study: Study, tmp_path: Path, monkeypatch):
    real = Engine._own
    monkeypatch.setattr(Engine, "_own", lambda *a: 2 * real(*a))
    with pytest.raises(ModelError, match="change its logits by"):
        patch_activations.run(job_of(study, tmp_path))


def test_what_runs_together_changes_nothing(study: Study, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, _, together = done
    monkeypatch.setattr(patch_activations, "RUNS_TOGETHER", 1)
    job = job_of(study, tmp_path)
    patch_activations.run(job)
    apart = read_table(job.output("outcomes"), schemas.OUTCOMES)
    close = [name for name, kind in together.schema.items() if kind.is_float()]
    assert together.drop(close).equals(apart.drop(close))
    for name in close:
        assert together[name].is_null().equals(apart[name].is_null()), name
        assert float((together[name] - apart[name]).abs().max() or 0) < 1e-4, name


def test_refusal_of_a_site_says_which_intervention(study: Study, tmp_path: Path, monkeypatch):
    real = Decoder.tap

    def closed(self: Decoder, site: Site) -> Tap:
        tap = real(self, site)
        return replace(tap, gate=torch.nn.Parameter(torch.zeros(1))) if site.kind == "mlp_write" else tap

    monkeypatch.setattr(Decoder, "tap", closed)
    with pytest.raises(ModelError, match=r"intervention self \(mlp_write, layers 0-3\) cannot be made .* gate"):
        patch_activations.run(job_of(study, tmp_path))


def test_log_probabilities_are_of_the_right_answer_with_and_without_the_patch(study: Study, done):
    _, _, outcomes = done
    row = outcomes.filter((pl.col("intervention") == "heuristic") & (pl.col("set") == "lost")).row(0, named=True)
    batch = study.vlm.batch([study.prompt(row["question_id"], "image")])
    patches = expected_patches(study, row, row["question_id"], "tiny-llm-activations.h5", 2)
    for column, given in (("right_logprob", patches), ("right_logprob_plain", ())):
        [[want]] = study.vlm.answer_logprobs(batch, [["nothing"]], given)
        assert row[column] == pytest.approx(want, abs=1e-4)
    assert row["right_logprob"] != pytest.approx(row["right_logprob_plain"], abs=1e-4)
    none = outcomes.filter(pl.col("intervention") == "none")
    assert none["right_logprob"].equals(none["right_logprob_plain"], check_names=False)
    scored = outcomes.filter(pl.col("donor_logprob_plain").is_not_null() & (pl.col("intervention") != "none"))
    assert scored["intervention"].unique().to_list() == ["wrong_entity"]


def test_unpatched_rerun_gives_the_benchmarks_answers(study: Study, done):
    job, _, outcomes = done
    none = outcomes.filter(pl.col("intervention") == "none")
    assert dict(none.select("question_id", "answer_text").iter_rows()).items() <= study.image_answers.items()
    assert none["correct"].to_list() == (none["set"] == "kept").to_list()
    baseline = read_json(job.output("metrics"))["baseline"]
    assert baseline == {"n": 12, "same_text": 12, "same_grade": 12}


def test_rerun_that_differs_from_the_benchmark_is_counted(study: Study, tmp_path: Path):
    answers = read_table(study.path("answers.parquet"), schemas.ANSWERS)
    write_table(tmp_path / "a.parquet", answers.with_columns(pl.lit("else").alias("answer_text")), schemas.ANSWERS)
    job = job_of(study, tmp_path, {"answers": str(tmp_path / "a.parquet")}, **FEW)
    patch_activations.run(job)
    assert read_json(job.output("metrics"))["baseline"] == {"n": 4, "same_text": 0, "same_grade": 4}


def expected_patches(study: Study, row: dict[str, object], donor: str, file: str, layers: int) -> list[Patch]:
    batch = study.vlm.batch([study.prompt(str(row["question_id"]), "image")])
    start = batch.spans[0][0] + int(str(row["span_start"]))
    where = torch.zeros_like(batch.groups["last"])
    where[0, start : start + int(str(row["span_length"]))] = True
    with ActivationReader(study.path(file)) as reader:
        read = [reader.read_entity_tokens("text", "mlp_write", layer, donor) for layer in range(layers)]
    return [Patch(Site("mlp_write", i), where, torch.tensor(values)) for i, values in enumerate(read)]


def test_heuristic_patch_writes_the_backbones_name_where_attribution_is_largest(study: Study, done):
    _, _, outcomes = done
    rows = outcomes.filter((pl.col("intervention") == "heuristic") & (pl.col("set") == "lost"))
    for row in rows.iter_rows(named=True):
        q = row["question_id"]
        batch = study.vlm.batch([study.prompt(q, "image")])
        assert row["span_start"] <= 2 < row["span_start"] + row["span_length"]
        patches = expected_patches(study, row, q, "tiny-llm-activations.h5", 2)
        assert study.vlm.generate(batch, TOKENS, patches) == [row["answer_text"]]
        assert row["donor_entity_id"] == q.split("/")[0]
        assert (row["first_layer"], row["last_layer"]) == (0, 1)
    # the patch is no empty gesture: some answers change
    assert rows["answer_text"].to_list() != [study.image_answers[q] for q in rows["question_id"]]


def test_wrong_entity_patch_writes_the_other_name(study: Study, done):
    _, _, outcomes = done
    row = outcomes.filter(pl.col("intervention") == "wrong_entity").row(0, named=True)
    relation = row["question_id"].split("/")[1]
    donor = f"{row['donor_entity_id']}/{relation}"
    assert donor != row["question_id"]
    patches = expected_patches(study, row, donor, "tiny-llm-activations.h5", 2)
    batch = study.vlm.batch([study.prompt(row["question_id"], "image")])
    assert study.vlm.generate(batch, TOKENS, patches) == [row["answer_text"]]
    assert outcomes.filter(pl.col("moved_to_donor").is_not_null())["intervention"].unique().to_list() == [
        "wrong_entity"
    ]


def test_own_words_of_a_frozen_language_model_act_as_the_backbones(done):
    _, _, outcomes = done
    said = {
        name: outcomes.filter((pl.col("intervention") == name) & (pl.col("set") == "lost")).sort("question_id")
        for name in ("heuristic", "own_text")
    }
    assert said["heuristic"]["answer_text"].to_list() == said["own_text"]["answer_text"].to_list()


def test_back_patch_moves_a_later_residual_to_an_earlier_layer(study: Study, done):
    _, _, outcomes = done
    rows = outcomes.filter(pl.col("intervention") == "back_patch")
    # (12, 4) is left out: the model has 4 layers
    assert set(rows.select("from_layer", "first_layer").iter_rows()) == {(3, 1), (2, 0)}
    for row in rows.head(4).iter_rows(named=True):
        batch = study.vlm.batch([study.prompt(row["question_id"], "image")])
        late = Site("resid_post", row["from_layer"])
        values = study.vlm.run(batch, capture=[late]).activations[late][batch.groups["image"]]
        patch = Patch(Site("resid_post", row["first_layer"]), batch.groups["image"], values)
        assert study.vlm.generate(batch, TOKENS, [patch]) == [row["answer_text"]]


def test_mean_and_zero_donors_have_no_entity(done):
    _, _, outcomes = done
    rows = outcomes.filter(pl.col("intervention").is_in(["mean", "zero", "none", "back_patch"]))
    assert rows["donor_entity_id"].null_count() == rows.height


def test_metrics_hold_shares_with_their_counts(done):
    job, _, outcomes = done
    metrics = read_json(job.output("metrics"))
    assert set(metrics["recovered"]) == {"none", "heuristic", "random", "wrong_entity", "own_text", "mean", "zero"}
    assert metrics["recovered"]["random"]["n_answers"] == 30
    kept = outcomes.filter((pl.col("set") == "kept") & (pl.col("intervention") == "heuristic"))
    assert metrics["broken"]["heuristic"]["value"] == pytest.approx(1 - kept["correct"].mean())
    assert metrics["broken"]["none"]["value"] == 0.0
    assert [s["layers"] for s in metrics["sweep"]] == [1, 4]
    assert metrics["n_available"] == {"lost": 10, "kept": 10}
    assert metrics["moved_to_donor_without_patch"]["n_questions"] == 6
    assert set(metrics["broken"]) == set(metrics["recovered"]) | {"back_patch"}
    cells = {(c["site"], c["span"], c["first_layer"], c["last_layer"]) for c in metrics["grid"]}
    spans, windows = ("heuristic", "image_last", "random"), ((0, 0), (0, 3), (3, 3))
    assert cells == {("mlp_write", span, *w) for span in spans for w in windows}
    assert {c["n_answers"] for c in metrics["grid"]} == {2}


class _Killed(Exception):
    pass


def test_killed_job_resumes_and_answers_nothing_twice(study: Study, done, tmp_path: Path, monkeypatch):
    _, _, expected = done
    real, calls = Model.reply, []

    def dying(self, *given):
        if len(calls) == 9:
            raise _Killed
        calls.append(1)
        return real(self, *given)

    monkeypatch.setattr(Model, "reply", dying)
    job = job_of(study, tmp_path)
    with pytest.raises(_Killed):
        patch_activations.run(job)
    kept = {p.name: p.stat().st_mtime_ns for p in job.work.iterdir()}
    assert kept
    assert not job.output("outcomes").exists()
    monkeypatch.setattr(Model, "reply", real)
    patch_activations.run(job)
    assert {p.name: p.stat().st_mtime_ns for p in job.work.iterdir()}.items() >= kept.items()
    assert read_table(job.output("outcomes"), schemas.OUTCOMES).equals(expected)


def test_empty_sets_still_give_every_artifact(study: Study, tmp_path: Path):
    text = read_table(study.path("backbone-answers.parquet"), schemas.ANSWERS)
    write_table(tmp_path / "t.parquet", text.with_columns(pl.lit(False).alias("correct")), schemas.ANSWERS)
    job = job_of(study, tmp_path, {"backbone_answers": str(tmp_path / "t.parquet")})
    assert patch_activations.run(job) == {"lost": 0, "kept": 0, "answers": 0}
    assert read_table(job.output("outcomes"), schemas.OUTCOMES).is_empty()
    metrics = read_json(job.output("metrics"))
    assert (metrics["n_lost"], metrics["n_kept"], metrics["recovered"]) == (0, 0, {})


def test_lost_facts_without_a_dev_split_have_no_pair(study: Study, tmp_path: Path):
    write_table(tmp_path / "q.parquet", study.questions.with_columns(pl.lit("test").alias("split")), schemas.QUESTIONS)
    job = job_of(study, tmp_path, {"questions": str(tmp_path / "q.parquet")}, **FEW)
    patch_activations.run(job)
    found = read_json(job.output("metrics"))["back_patch"]
    assert found["pair"] is None
    assert found["n_dev"] == 0
    assert found["oracle_pair"] is not None


def test_patched_answers_do_not_depend_on_the_batch(study: Study, done, tmp_path: Path):
    job = job_of(study, tmp_path, batch=1)
    patch_activations.run(job)
    alone = read_table(job.output("outcomes"), schemas.OUTCOMES)
    same = (alone["answer_text"] == done[2]["answer_text"]).mean()
    assert same == 1.0
    change = (alone["right_logprob"] - done[2]["right_logprob"]).abs()
    assert change.max() < 1e-4
