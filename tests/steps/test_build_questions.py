import polars as pl
import pytest

from twohop.data import folded_answers
from twohop.errors import DataError
from twohop.models import Prompt, Tokens
from twohop.models._random_tokens import tiny_tokenizer
from twohop.steps import build_questions
from twohop.steps._step import Job
from twohop.store import read_table, schemas, write_table

PARAMS = {
    "templates": {
        "capital": "Consider the country {entity}. The capital of this country is",
        "continent": "{entity} lies in the continent of",
    },
    "style": "noto_original",
    "dev_share": 0.25,
    "seed": 0,
}
WORLD = {
    "France": ("Paris", "Europe"),
    "Japan": ("Tokyo", "Asia"),
    "Kenya": ("Nairobi", "Africa"),
    "Egypt": ("Cairo", "Africa"),
    "China": ("Beijing", "Asia"),
    "Italy": ("Rome", "Europe"),
    "Chile": ("Santiago", "South America"),
    "Bosnia and Herzegovina": ("Sarajevo", "Europe"),
}


@pytest.fixture(scope="module")
def tokens():
    return Tokens(tiny_tokenizer())


@pytest.fixture
def study(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(build_questions, "open_tokenizer", lambda _card: tokens)
    entities = [
        {"entity_id": n, "name": n, "aliases": [n], "kind": "country", "look_alikes": [], "evaluated": n != "Italy"}
        for n in WORLD
    ]
    facts = [
        {"entity_id": n, "relation": r, "answer": a, "answer_aliases": [a, f"the {a}"], "name_in_answer": False}
        | dict.fromkeys(("source", "source_version", "licence", "url"), "x")
        for n, answers in WORLD.items()
        for r, a in zip(("capital", "continent"), answers, strict=True)
    ]
    save(tmp_path, "entities", entities, schemas.ENTITIES)
    save(tmp_path, "facts", facts, schemas.FACTS)
    save(tmp_path, "manifest", [shown(n, s) for n in WORLD for s in ("simple", "noto_original")], schemas.MANIFEST)
    return tmp_path


def save(folder, name, rows, schema):
    write_table(folder / f"{name}.parquet", pl.DataFrame(rows, schema=schema), schema)


def shown(name, style):
    text = dict.fromkeys(("art_source", "licence", "author", "source_page", "locator", "reason", "file", "sha256"), "x")
    size = dict.fromkeys(("size_bytes", "width", "height"), 1)
    return {**text, **size, "picture_id": f"{name}/{style}", "entity_id": name, "style": style, "status": "ok"}


def change(study, name, schema, **columns):
    table = read_table(study / f"{name}.parquet", schema).with_columns(**columns)
    write_table(study / f"{name}.parquet", table, schema)


def run(study, out="questions", **changes):
    inputs = {n: (study / f"{n}.parquet",) for n in ("entities", "facts", "manifest", "card")}
    outputs = {"questions": study / f"{out}.parquet"}
    job = Job("build_questions", "m", {"build_questions": {**PARAMS, **changes}}, inputs, outputs, study / "work")
    return build_questions.run(job), read_table(outputs["questions"], schemas.QUESTIONS)


def test_one_question_per_evaluated_entity_and_relation(study):
    summary, questions = run(study)
    evaluated = set(WORLD) - {"Italy"}
    assert set(questions["question_id"]) == {f"{n}/{r}" for n in evaluated for r in ("capital", "continent")}
    assert (summary["questions"], summary["left_out"], summary["entities"]) == (14, 0, 7)
    assert set(questions["picture_id"]) == {f"{n}/noto_original" for n in evaluated}


def test_both_forms_come_from_one_template(study):
    _, questions = run(study)
    for row in questions.to_dicts():
        assert f"{row['before']}{{entity}}{row['after']}" == PARAMS["templates"][row["relation"]]


def test_token_counts_are_those_that_a_batch_marks(study, tokens):
    _, questions = run(study)
    for row in questions.to_dicts():
        encoded = tokens.encode(Prompt(row["before"], row["name"], row["after"]))
        assert row["n_name_tokens"] == encoded.end - encoded.start
        assert row["name"] in tokens.decode(encoded.ids[encoded.start : encoded.end])


def test_twins_differ_in_entity_and_answer_and_in_nothing_else(study):
    _, questions = run(study)
    by_id = {q["question_id"]: q for q in questions.to_dicts()}
    paired = [q for q in by_id.values() if q["corrupted_id"] is not None]
    assert len(paired) >= 8
    for clean in paired:
        corrupted = by_id[clean["corrupted_id"]]
        assert clean["entity_id"] != corrupted["entity_id"]
        for same in ("relation", "before", "after", "n_name_tokens"):
            assert clean[same] == corrupted[same]
        assert clean["clean_token"] != clean["corrupted_token"]
        assert not folded_answers(clean["answer_aliases"]) & folded_answers(corrupted["answer_aliases"])


def test_tokens_of_the_metric_continue_the_prompt(study, tokens):
    _, questions = run(study)
    by_id = {q["question_id"]: q for q in questions.to_dicts()}
    for q in by_id.values():
        if q["corrupted_id"] is None:
            assert q["clean_token"] is q["corrupted_token"] is None
            continue
        prompt = f"{q['before']}{q['name']}{q['after']}"
        for token, answer in (
            (q["clean_token"], q["answer"]),
            (q["corrupted_token"], by_id[q["corrupted_id"]]["answer"]),
        ):
            ids = tokens.tokenize(prompt)
            assert tokens.tokenize(f"{prompt} {answer}")[: len(ids) + 1] == [*ids, token]
            assert f" {answer}".startswith(tokens.decode([token]))


def test_a_question_without_a_twin_is_null_and_counted(study):
    summary, questions = run(study)
    alone = questions.filter(pl.col("corrupted_id").is_null())
    assert summary["without_twin"] == alone.height
    assert {"Bosnia and Herzegovina/capital", "Bosnia and Herzegovina/continent"} <= set(alone["question_id"])


def test_split_goes_by_entity(study):
    summary, questions = run(study)
    assert questions.group_by("entity_id").agg(pl.col("split").n_unique())["split"].max() == 1
    dev = questions.filter(pl.col("split") == "dev")
    assert dev["entity_id"].n_unique() == round(0.25 * 7)
    assert summary["dev_questions"] == dev.height


def test_c01_same_bytes_again_other_pairs_or_split_with_another_seed(study):
    _, first = run(study, "a")
    run(study, "b")
    assert (study / "a.parquet").read_bytes() == (study / "b.parquet").read_bytes()
    assert any(not run(study, "c", seed=s)[1].equals(first) for s in (1, 2, 3))


def test_what_the_name_gives_away_is_never_asked(study):
    given = (pl.col("entity_id") == "Kenya") & (pl.col("relation") == "capital")
    change(study, "facts", schemas.FACTS, name_in_answer=given)
    summary, questions = run(study)
    assert "Kenya/capital" not in set(questions["question_id"])
    assert summary["left_out"] == 1


def test_a_failed_picture_leaves_its_questions_out(study):
    failed = pl.when(pl.col("picture_id") == "Kenya/noto_original").then(pl.lit("failed")).otherwise("status")
    change(study, "manifest", schemas.MANIFEST, status=failed)
    summary, questions = run(study)
    assert "Kenya" not in set(questions["entity_id"])
    assert summary["left_out"] == 2


def test_no_picture_in_the_asked_style_is_an_error(study):
    change(study, "manifest", schemas.MANIFEST, style=pl.lit("circle"))
    with pytest.raises(DataError, match="both a fact and a picture in style noto_original"):
        run(study)
    assert not (study / "questions.parquet").exists()


def test_an_answer_without_a_token_is_an_error(tokens, monkeypatch):
    row = {"question_id": "FR/capital", "before": "The ", "name": "France", "after": " is", "answer": "Paris"}
    assert build_questions._first_token(tokens, row) == tokens.answer_ids("Paris")[0]
    monkeypatch.setattr(tokens, "tokenize", lambda text: tokens.raw(text[:10])["input_ids"])
    with pytest.raises(DataError, match="has no token"):
        build_questions._first_token(tokens, row)


def test_a_question_whose_words_name_the_entity_is_not_asked(study):
    templates = {**PARAMS["templates"], "capital": "Of {entity}, which is not in China: the capital is"}
    summary, rows = run(study, templates=templates)
    assert "China" in set(rows.filter(pl.col("relation") == "continent")["name"])
    assert "China" not in set(rows.filter(pl.col("relation") == "capital")["name"])
    assert summary["left_out"] >= 1
