"""Step build_questions: twin prompts, named and shown, each with its corrupted twin (study, sections 1 and 3).

1. one question per evaluated entity and relation, unless its own words name the entity; the two forms differ in what
   stands for `{entity}` alone;
2. the dev/test split goes by entity and is the same for every model;
3. the corrupted twin asks the same relation of another entity with another answer, whose name has as many tokens in
   its prompt and whose answer starts with another token, in this model's tokenizer.
"""

import logging
from collections import Counter
from typing import Any

import polars as pl

from twohop.config import BuildQuestions
from twohop.config.templates import find_template
from twohop.data import (
    Twin,
    fold,
    folded_answers,
    pair_questions,
    split_entities,
)
from twohop.errors import DataError
from twohop.models import Tokens, open_tokenizer
from twohop.steps._asking import split_prompt
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_table, schemas, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="build_questions",
    params=("build_questions",),
    inputs=("entities", "facts", "manifest", "card"),
    outputs=("questions",),
)


def run(job: Job) -> Summary:
    """Write the questions.

    Raises:
        DataError: no evaluated entity has a picture in the style that is asked, or none has a fact.
    """
    params = job.section(BuildQuestions)
    entities = read_table(job.input("entities"), schemas.ENTITIES).filter("evaluated")
    facts = read_table(job.input("facts"), schemas.FACTS)
    manifest = read_table(job.input("manifest"), schemas.MANIFEST)
    tokens = open_tokenizer(job.input("card"))
    asked = _asked(entities, facts, manifest, params)
    splits = split_entities(entities["entity_id"].to_list(), params.dev_share, params.seed)
    templates = {relation: _template(relation, params) for relation in facts["relation"].unique().to_list()}
    rows = [_row(q, templates[q["relation"]], splits[q["entity_id"]], tokens) for q in asked.to_dicts()]
    rows = [row for row in rows if not _names_itself(row)]
    rows, twins = add_twins(rows, tokens, params.seed)
    write_table(job.output("questions"), pl.DataFrame(rows, schema=schemas.QUESTIONS), schemas.QUESTIONS)
    expected = entities.height * facts["relation"].n_unique()
    return _summary(rows, twins, expected)


def _asked(entities: pl.DataFrame, facts: pl.DataFrame, manifest: pl.DataFrame, params: BuildQuestions) -> pl.DataFrame:
    """One row per question: entity, fact and picture joined; facts that the name gives away are left out."""
    shown = manifest.filter((pl.col("style") == params.style) & (pl.col("status") == "ok"))
    usable = facts.filter(~pl.col("name_in_answer")).select("entity_id", "relation", "answer", "answer_aliases")
    out = (
        entities.select("entity_id", "name")
        .join(usable, on="entity_id")
        .join(shown.select("entity_id", "picture_id"), on="entity_id")
        .sort("entity_id", "relation")
    )
    if out.is_empty():
        raise DataError(
            f"no evaluated entity has both a fact and a picture in style {params.style}",
            "facts.parquet, manifest.parquet",
            "check fetch_images.styles and the manifest's reasons",
        )
    return out


def _template(relation: str, params: BuildQuestions) -> str:
    found = find_template(params, relation)
    if found is None:
        todo = f'add there: {relation}: "... {{entity}} ..."'
        raise DataError(f"no template for relation {relation}", "params.yaml, build_questions.templates", todo)
    return found


def _names_itself(row: dict[str, Any]) -> bool:
    """Whether the words round the picture say what it shows."""
    return f" {fold(row['name'])} " in f" {fold(row['before'])}  {fold(row['after'])} "


def _row(question: dict[str, Any], template: str, split: str, tokens: Tokens) -> dict[str, Any]:
    before, after = split_prompt(template)
    return {
        "question_id": f"{question['entity_id']}/{question['relation']}",
        **question,
        "before": before,
        "after": after,
        "split": split,
        "n_name_tokens": tokens.name_span_length(before, question["name"], after),
    }


def add_twins(rows: list[dict[str, Any]], tokens: Tokens, seed: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The rows with `corrupted_id`, `clean_token` and `corrupted_token`; and how often each question is a twin.

    Args:
        rows: questions with before, name, after, answer, answer_aliases, n_name_tokens.
        tokens: the model's tokenizer.
        seed: of the pairing.
    """
    first = {r["question_id"]: _first_token(tokens, r) for r in rows}
    chosen = pair_questions([_twin(r, first[r["question_id"]]) for r in rows], seed)
    out: list[dict[str, Any]] = []
    for row in rows:
        twin = chosen[row["question_id"]]
        pair = (None, None) if twin is None else (first[row["question_id"]], first[twin])
        out.append({**row, "corrupted_id": twin, "clean_token": pair[0], "corrupted_token": pair[1]})
    return out, dict(Counter(twin for twin in chosen.values() if twin is not None))


def _first_token(tokens: Tokens, row: dict[str, Any]) -> int:
    """Id of the answer's first token after the named prompt."""
    found = tokens.first_answer_token(row["before"], row["name"], row["after"], row["answer"])
    if found is None:
        raise DataError(f"the answer {row['answer']!r} has no token", row["question_id"], "correct the fact's answer")
    return found


def _twin(row: dict[str, Any], first_token: int) -> Twin:
    return Twin(
        question_id=row["question_id"],
        entity_id=row["entity_id"],
        relation=row["relation"],
        n_name_tokens=row["n_name_tokens"],
        first_token=first_token,
        answers=folded_answers(row["answer_aliases"]),
    )


def _summary(rows: list[dict[str, Any]], twins: dict[str, int], expected: int) -> Summary:
    alone = [row["question_id"] for row in rows if row["corrupted_id"] is None]
    if alone:
        LOG.info("%d questions have no corrupted twin: %s", len(alone), ", ".join(alone))
    return {
        "questions": len(rows),
        "left_out": expected - len(rows),
        "entities": len({row["entity_id"] for row in rows}),
        "dev_questions": sum(row["split"] == "dev" for row in rows),
        "without_twin": len(alone),
        "most_uses_of_a_twin": max(twins.values(), default=0),
    }
