import gc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny_patching
import torch
from tiny_patching import LAYERS, Study

from twohop.analysis import Contrast, Runner, attribute
from twohop.errors import DataError, ModelError
from twohop.models import Batch, Model, Patch, Run, Site
from twohop.steps import score_attribution
from twohop.steps.score_attribution import EMBEDDING, KINDS, STAR_KINDS, permute_answers
from twohop.store import read_json, read_table, schemas, write_table

PARAMS = {
    "max_examples": 8,
    "method": "plain",
    "steps": 1,
    "batch": 3,
    "validate_examples": 2,
    "validate_layer_stride": 2,
    "validate_heads": 1,
    "seed": 0,
}
INPUTS = {"questions": "questions.parquet", "manifest": "manifest.parquet", "pictures": "pictures.zip"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOHOP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny_patching.build(tmp_path_factory.mktemp("study"))


def scored(study: Study, work: Path, model: str = "tiny-vlm", **params: int | str):
    job = study.job("score_attribution", model, PARAMS | params, INPUTS | {"card": f"{model}-card.json"}, work)
    return job, score_attribution.run(job)


@pytest.fixture(scope="module")
def done(study: Study, tmp_path_factory: pytest.TempPathFactory):
    job, summary = scored(study, tmp_path_factory.mktemp("done"))
    return job, summary


def test_every_node_of_both_runs_is_scored(done):
    job, summary = done
    scores = read_table(job.output("scores"), schemas.SCORES)
    for run, groups in (
        ("text", {"entity", "entity_last", "question", "last"}),
        ("image", {"image", "image_last", "question", "last"}),
    ):
        nodes = set(scores.filter(pl.col("run") == run).select("kind", "layer", "group").iter_rows())
        assert nodes == {(k, layer, g) for k in KINDS for layer in range(LAYERS) for g in groups}
    assert set(scores["n_examples"].to_list()) == {8}
    assert (scores["mean_abs"] >= scores["mean_signed"].abs() - 1e-12).all()
    assert float(scores["mean_abs"].max()) > 0
    assert summary["questions"] == 8


def test_validation_is_what_patching_one_node_changes(study: Study, done):
    job, _ = done
    checked = read_table(job.output("validation"), schemas.VALIDATION)
    assert checked.height == 2 * 2 * len(KINDS) * (LAYERS // 2) * 4  # of heads one per question and layer
    image = checked.filter((pl.col("run") == "image") & (pl.col("group") == "image") & pl.col("head").is_null())
    row = image.row(0, named=True)
    site = Site(row["kind"], row["layer"])
    twin = dict(study.questions.select("question_id", "corrupted_id").iter_rows())[row["question_id"]]
    clean, other = (study.vlm.batch([study.prompt(i, "image")]) for i in (row["question_id"], twin))
    values = study.vlm.run(other, capture=[site]).activations[site][other.groups["image"]]
    with_patch = study.vlm.run(clean, patches=[Patch(site, clean.groups["image"], values)]).logits
    m = lambda logits: float(logits[0, 40] - logits[0, 41])  # noqa: E731
    assert row["patched"] == pytest.approx(m(with_patch) - m(study.vlm.run(clean).logits), abs=1e-4)


def test_every_head_is_scored_and_some_are_truly_patched(study: Study, done):
    job, _ = done
    scores = read_table(job.output("scores"), schemas.SCORES).filter(pl.col("run") == "image")
    n_heads = study.vlm.decoder.n_heads
    heads = scores.filter(pl.col("kind") == "head")
    assert n_heads > 1
    assert heads.height == n_heads * LAYERS * 4
    assert scores.filter(pl.col("head").is_null())["kind"].unique().sort().to_list() == sorted(set(KINDS) - {"head"})
    writes = scores.filter(pl.col("kind") == "attn_write").sort("layer", "group")["mean_signed"].to_numpy()
    together = heads.group_by("layer", "group").agg(pl.col("mean_signed").sum()).sort("layer", "group")
    assert np.allclose(together["mean_signed"].to_numpy(), writes, atol=1e-5)  # heads add up to what attention writes
    row = read_table(job.output("validation"), schemas.VALIDATION).filter(
        (pl.col("run") == "image") & (pl.col("kind") == "head") & (pl.col("group") == "image")
    )
    row = row.row(0, named=True)
    site, d_head = Site("head", row["layer"]), study.vlm.decoder.width(Site("head", 0)) // n_heads
    twin = dict(study.questions.select("question_id", "corrupted_id").iter_rows())[row["question_id"]]
    clean, other = (study.vlm.batch([study.prompt(i, "image")]) for i in (row["question_id"], twin))
    where, part = clean.groups["image"], slice(row["head"] * d_head, (row["head"] + 1) * d_head)
    values = study.vlm.run(clean, capture=[site]).activations[site][where]
    values[:, part] = study.vlm.run(other, capture=[site]).activations[site][where][:, part]
    with_patch = study.vlm.run(clean, patches=[Patch(site, where, values)]).logits
    m = lambda logits: float(logits[0, 40] - logits[0, 41])  # noqa: E731
    assert row["patched"] == pytest.approx(m(with_patch) - m(study.vlm.run(clean).logits), abs=1e-4)


def test_question_scores_are_what_the_mean_is_the_mean_of(done):
    job, _ = done
    table = read_table(job.output("question_scores"), schemas.QUESTION_SCORES)
    assert table.height == 8 * 2 * 2 * 4  # questions, runs, kinds, groups
    assert set(table["scores"].list.len().to_list()) == {LAYERS}
    layers = pl.int_ranges(0, LAYERS).alias("layer").cast(pl.List(pl.Int64))
    means = (
        table.with_columns(layers)
        .explode("scores", "layer")
        .group_by("run", "kind", "layer", "group")
        .agg(pl.col("scores").mean())
    )
    scores = read_table(job.output("scores"), schemas.SCORES)
    both = means.join(scores, on=["run", "kind", "layer", "group"], how="left")
    assert both["mean_abs"].to_numpy() == pytest.approx(both["scores"].to_numpy(), abs=1e-9)


def test_atp_star_scores_queries_and_keys_too(study: Study, done, tmp_path: Path):
    job, _ = scored(study, tmp_path, "tiny-llm", method="atp_star")
    star = read_table(job.output("scores"), schemas.SCORES)
    assert set(star["kind"].to_list()) == {*KINDS, *STAR_KINDS}
    heads = {k: star.filter(pl.col("kind") == k)["head"].n_unique() for k in ("head", "query", "key")}
    assert heads == {
        "head": study.backbone.decoder.n_heads,
        "query": study.backbone.decoder.n_heads,
        "key": study.backbone.decoder.n_kv_heads,
    }
    plain = read_table(done[0].output("scores"), schemas.SCORES).filter(pl.col("run") == "text")
    both = plain.join(star, on=["kind", "layer", "head", "group"], nulls_equal=True)
    assert both.height == plain.height
    assert np.allclose(both["mean_signed"].to_numpy(), both["mean_signed_right"].to_numpy(), atol=1e-4)
    assert not np.allclose(both["mean_abs"].to_numpy(), both["mean_abs_right"].to_numpy(), atol=1e-4)
    checked = read_table(job.output("validation"), schemas.VALIDATION)
    assert set(checked["kind"].to_list()) == {*KINDS, *STAR_KINDS}
    for kind in STAR_KINDS:
        part = checked.filter((pl.col("kind") == kind) & (pl.col("patched").abs() > 1e-6))
        assert part.height > 3
        assert np.corrcoef(part["attributed"].to_numpy(), part["patched"].to_numpy())[0, 1] > 0.5


def told_apart(study: Study) -> tuple[Runner, list, Contrast]:
    """Ten pictures, each with the next as twin, and per pair the two tokens that tell it apart best."""
    model = study.vlm
    ids = study.questions.filter(pl.col("relation") == "capital")["question_id"].to_list()
    clean, other = (model.batch([study.prompt(i, "image") for i in x]) for x in (ids, [*ids[1:], ids[0]]))
    gap = model.run(clean).logits - model.run(other).logits
    return Runner(model.run, Patch, model.heads), [clean, other], Contrast(gap.argmax(1), gap.argmin(1))


def test_permuted_pairs_give_next_to_nothing(study: Study):
    runner, twins, contrast = told_apart(study)
    cut = Site("resid_post", 0)  # all that the picture's tokens say passes here
    total = lambda c: float(attribute(runner, *twins, c, [cut], EMBEDDING).nodes[cut, "image"].mean())  # noqa: E731
    n = len(contrast.clean)
    true = total(contrast)
    wrong = [total(contrast.rows([(i + shift) % n for i in range(n)])) for shift in range(2, n - 1)]
    assert true < -0.1
    assert abs(np.mean(wrong)) < 0.2 * abs(true)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_against_clean_scores_exactly_zero(study: Study, kind: str):
    runner, twins, contrast = told_apart(study)
    found = attribute(runner, twins[0], twins[0], contrast, [Site(kind, n) for n in range(LAYERS)], EMBEDDING)
    assert all(float(score.abs().max()) == 0.0 for score in found.nodes.values())


def test_permuted_answers_are_of_the_same_relation_and_share_no_token():
    contrast = Contrast(torch.tensor([1, 2, 1, 7, 9]), torch.tensor([5, 6, 6, 8, 9]))
    assert permute_answers(["a", "a", "a", "b", "c"], contrast) == [1, 0, -1, -1, -1]


def test_metrics_hold_the_control_of_permuted_answers(study: Study, tmp_path: Path):
    asked = study.questions.filter(pl.col("relation") == "capital")
    ids = asked["question_id"].to_list()
    _, _, contrast = told_apart(study)
    told = zip(asked.iter_rows(named=True), [*ids[1:], ids[0]], contrast.clean, contrast.corrupted, strict=True)
    rows = [
        {**q, "corrupted_id": twin, "clean_token": int(a), "corrupted_token": int(b), "name": "France"}
        for q, twin, a, b in told
    ]  # one name, so that the twins of the text run have one length
    write_table(tmp_path / "questions.parquet", pl.DataFrame(rows, schema=schemas.QUESTIONS), schemas.QUESTIONS)
    inputs = INPUTS | {"card": "tiny-vlm-card.json", "questions": str(tmp_path / "questions.parquet")}
    job = study.job("score_attribution", "tiny-vlm", PARAMS | {"max_examples": 10}, inputs, tmp_path)
    score_attribution.run(job)
    found = read_json(job.output("metrics"))["image"]
    assert found["change"] == pytest.approx(found["corrupted_metric"] - found["clean_metric"])
    assert found["change"] < -0.1
    assert found["n_permuted"] > 3
    assert abs(found["permuted_change"]) < 0.7 * abs(found["change"])


def test_memory_does_not_grow_with_the_number_of_pairs(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes of all tensors alive when a batch's graph stands, besides weights: per token they stay what they were."""
    monkeypatch.setattr("twohop.steps._asking.KEPT_PICTURES", 4)
    alive: list[float] = []
    forward = Model.run

    def measured(self: Model, batch: Batch, *args: Any, **kwargs: Any) -> Run:
        found = forward(self, batch, *args, **kwargs)
        if kwargs.get("grad"):
            tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor]
            alive.append(sum(t.nbytes for t in tensors) / batch.input_ids.numel())
        return found

    monkeypatch.setattr(Model, "run", measured)
    scored(study, tmp_path, max_examples=16, batch=2, validate_examples=1)
    runs = np.array(alive).reshape(2, 8)
    sites = (2 * len(KINDS)) * LAYERS  # of the clean and the corrupted batch
    assert (runs > sites * 32 * 4).all()  # all captured activations, of 32 numbers each, are seen
    assert (runs[:, 2:].max(1) < 1.1 * runs[:, :2].max(1)).all()


def test_first_order_estimate_agrees_with_patching_at_the_end_of_the_network(done):
    job, _ = done
    # resid_post at `last` behind the last scored layer is all that the logits see there: close to linear
    checked = read_table(job.output("validation"), schemas.VALIDATION)
    late = checked.filter((pl.col("kind") == "mlp_write") & (pl.col("layer") == 2))
    pair = np.corrcoef(late["attributed"].to_numpy(), late["patched"].to_numpy())
    assert pair[0, 1] > 0.8


def test_spans_cover_picture_and_question(study: Study, done):
    job, _ = done
    spans = read_table(job.output("spans"), schemas.SPANS)
    assert spans.height == 8 * LAYERS
    for q, layer, scores in spans.iter_rows():
        batch = study.vlm.batch([study.prompt(q, "image")])
        assert len(scores) == batch.groups["last"].shape[1] - batch.spans[0][0]
        assert min(scores) >= 0
        if layer == LAYERS - 1:  # only the last position can still reach the answer
            assert max(scores[:-1]) == 0.0
            assert scores[-1] > 0.0


def test_spans_are_the_absolute_scores_of_positions(study: Study, done):
    job, _ = done
    q, layer, scores = read_table(job.output("spans"), schemas.SPANS).row(0)
    site = Site("mlp_write", layer)
    twin = dict(study.questions.select("question_id", "corrupted_id").iter_rows())[q]
    clean, other = (study.vlm.batch([study.prompt(i, "image")]) for i in (q, twin))
    run = study.vlm.run(clean, capture=[site], grad=True)
    (run.logits[0, 40] - run.logits[0, 41]).backward()
    a = run.activations[site]
    expected = ((study.vlm.run(other, capture=[site]).activations[site] - a.detach()) * a.grad).sum(-1)[0].abs()
    assert np.allclose(scores, expected[clean.spans[0][0] :].numpy(), atol=1e-5)


def test_metrics_say_how_far_to_trust_the_scores(done):
    metrics = read_json(done[0].output("metrics"))
    assert set(metrics) == {"text", "image"}
    for part in metrics.values():
        assert sum(part["share_by_component"].values()) == pytest.approx(1.0)
        assert 0 <= part["mlp_centre"] <= 1
        assert part["validation"]["mlp_write"]["n_nodes"] == 2 * (LAYERS // 2) * 4
        assert -1 <= part["validation"]["mlp_write"]["pearson"] <= 1
        assert part["n_examples"] == 8
        assert part["clean_metric"] != part["corrupted_metric"]


def test_backbone_has_a_text_run_only(study: Study, tmp_path: Path):
    job, summary = scored(study, tmp_path, "tiny-llm")
    assert set(read_table(job.output("scores"), schemas.SCORES)["run"].to_list()) == {"text"}
    assert read_table(job.output("spans"), schemas.SPANS).is_empty()
    assert summary["runs"] == 1


def test_same_eyes_same_words(study: Study, done, tmp_path: Path):
    """The VLM's language model is the backbone's, so their text runs score alike."""
    other, _ = scored(study, tmp_path, "tiny-llm")
    texts = [read_table(j.output("scores"), schemas.SCORES).filter(pl.col("run") == "text") for j in (done[0], other)]
    assert np.allclose(texts[0]["mean_signed"].to_numpy(), texts[1]["mean_signed"].to_numpy(), atol=1e-5)


def test_batch_size_changes_nothing(study: Study, done, tmp_path: Path):
    other, _ = scored(study, tmp_path, batch=8)
    tables = [read_table(j.output("scores"), schemas.SCORES) for j in (done[0], other)]
    assert np.allclose(tables[0]["mean_signed"].to_numpy(), tables[1]["mean_signed"].to_numpy(), atol=1e-4)


def test_short_memory_halves_batches_and_changes_nothing(
    study: Study, done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    limit, sizes = 2, []

    def short(runner, clean, *rest):
        sizes.append(len(clean))
        if len(clean) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attribute(runner, clean, *rest)

    monkeypatch.setattr(score_attribution, "attribute", short)
    job, _ = scored(study, tmp_path, batch=8)
    assert sizes == [8, 4, 2, 2, 2, 2] * 2
    assert "4 questions at a time: 2 from now on" in caplog.text
    whole, parts = (read_table(j.output("scores"), schemas.SCORES) for j in (done[0], job))
    assert np.allclose(whole["mean_signed"].to_numpy(), parts["mean_signed"].to_numpy(), atol=1e-5)
    limit = 0
    with pytest.raises(ModelError, match="one question"):
        scored(study, tmp_path / "none")


def test_integrated_gradients_differ_from_the_plain_gradient(study: Study, done, tmp_path: Path):
    other, _ = scored(study, tmp_path, method="integrated", steps=4)
    tables = [read_table(j.output("scores"), schemas.SCORES)["mean_signed"].to_numpy() for j in (done[0], other)]
    assert np.isfinite(tables[1]).all()
    assert not np.allclose(tables[0], tables[1], atol=1e-4)


def test_x06_attribution_of_a_real_model_equals_finite_differences(study: Study):
    q = study.questions.filter(pl.col("corrupted_id").is_not_null())["question_id"][0]
    site = Site("mlp_write", 1)
    batch = study.vlm.batch([study.prompt(q, "image")])
    where = batch.groups["image"]
    run = study.vlm.run(batch, capture=[site], grad=True)
    (run.logits[0, 40] - run.logits[0, 41]).backward()
    a = run.activations[site]
    assert a.grad is not None
    step = 1e-2 * torch.randn(a[where].shape, generator=torch.Generator().manual_seed(0))
    moved = [study.vlm.run(batch, patches=[Patch(site, where, (a.detach()[where] + s * step))]).logits for s in (1, -1)]
    change = [float(x[0, 40] - x[0, 41]) for x in moved]
    assert (change[0] - change[1]) / 2 == pytest.approx(float((a.grad[where] * step).sum()), rel=1e-2, abs=1e-5)


def test_no_twins_is_a_clear_error(study: Study, tmp_path: Path):
    none = study.questions.with_columns(pl.lit(None, pl.String).alias("corrupted_id"))
    write_table(tmp_path / "questions.parquet", none, schemas.QUESTIONS)
    inputs = INPUTS | {"card": "tiny-vlm-card.json", "questions": str(tmp_path / "questions.parquet")}
    with pytest.raises(DataError, match="no question has a corrupted twin"):
        score_attribution.run(study.job("score_attribution", "tiny-vlm", PARAMS, inputs, tmp_path))


def test_declared_outputs_are_written(done):
    job, _ = done
    assert all(job.output(name).exists() for name in score_attribution.STEP.outputs)
