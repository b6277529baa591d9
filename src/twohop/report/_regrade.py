"""The present grader (or other aliases) on stored answers: what would change, without a model.

An artifact must be what its recorded code, parameters and inputs give, so nothing below `results/` is written: the
differences are shown, and the regraded tables can be put elsewhere. Running the pipeline makes the new grades official,
and asks the models again, as an answer and its grade come from one step.

Regraded are run_benchmark's `answers` and `recognition`, recover_recall's `recovered` (answers and written names) and
patch_activations' `outcomes` (answers, and whether they moved to the donor's fact).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twohop.analysis import Verdict, degradation, judge, pair_answers
from twohop.errors import ArtifactError
from twohop.store import read_table, schemas

TABLES = {
    "answers": "run_benchmark",
    "recognition": "run_benchmark",
    "recovered": "recover_recall",
    "outcomes": "patch_activations",
}
CHANGES = {
    "table": pl.String(),
    "model": pl.String(),
    "about": pl.String(),  # question_id or picture_id
    "condition": pl.String(),
    "answer_text": pl.String(),
    "accepted": pl.String(),
    "was": pl.String(),  # the alias that matched, "wrong" when none did
    "now": pl.String(),
    "reason": pl.String(),  # twohop.analysis.judge
}


@dataclass(frozen=True)
class Aliases:
    """What counts as right."""

    facts: Mapping[str, Sequence[str]]
    """Of every question id."""
    names: Mapping[str, Sequence[str]]
    """Of every entity id."""

    def rivals(self, entity: str) -> list[str]:
        """Spellings of all other entities' names."""
        return [s for other, found in self.names.items() if other != entity for s in found]

    def with_more(self, more: pl.DataFrame) -> "Aliases":
        """With further accepted spellings: columns entity_id, relation ("" for the entity's own name), alias."""
        facts, names = ({k: list(v) for k, v in m.items()} for m in (self.facts, self.names))
        for entity, relation, alias in more.select("entity_id", "relation", "alias").iter_rows():
            known, key = (facts, f"{entity}/{relation}") if relation else (names, entity)
            if key not in known:
                raise ArtifactError(
                    f"an alias for {key!r}, which was never asked", "aliases", "name an entity_id and a relation"
                )
            known[key].append(alias)
        return Aliases(facts, names)


@dataclass(frozen=True)
class Regraded:
    """One table with new grades."""

    table: str
    model: str
    path: Path
    before: pl.DataFrame
    after: pl.DataFrame
    reasons: pl.DataFrame
    """CHANGES, one row per changed grade."""


def read_aliases(results: Path, model: str) -> Aliases:
    """What the stored tables accept."""
    questions = read_table(results / "build_questions" / model / "questions.parquet", schemas.QUESTIONS)
    entities = read_table(results / "curate_entities" / "entities.parquet", schemas.ENTITIES)
    return Aliases(
        dict(questions.select("question_id", "answer_aliases").iter_rows()),
        {e: [n, *a] for e, n, a in entities.select("entity_id", "name", "aliases").iter_rows()},
    )


def regrade(results: Path, more: pl.DataFrame | None = None) -> Iterator[Regraded]:
    """Every stored table of graded answers, graded again.

    Args:
        results: the folder of results.
        more: further aliases, see `Aliases.with_more`.

    Raises:
        ArtifactError: there are no answers, or a table cannot be read.
    """
    models = sorted(path.parent.name for path in (results / "run_benchmark").glob("*/answers.parquet"))
    if not models:
        raise ArtifactError("no stored answers", str(results), "run the study first, or `dvc pull`")
    for model in models:
        aliases = read_aliases(results, model)
        aliases = aliases if more is None else aliases.with_more(more)
        for table, step in TABLES.items():
            path = results / step / model / f"{table}.parquet"
            if path.exists():
                before = read_table(path, getattr(schemas, table.upper()))
                yield _regrade(table, model, path, before, aliases)


def _regrade(table: str, model: str, path: Path, before: pl.DataFrame, aliases: Aliases) -> Regraded:
    rows, changes = list[dict[str, Any]](), list[dict[str, Any]]()
    for row in before.iter_rows(named=True):
        if row["answer_text"] is None:  # measured by log-probability alone: there is no answer to grade
            rows.append(row)
            continue
        verdict = _verdict(table, row, aliases)
        new = row | {"correct": verdict.alias is not None, "matched_alias": verdict.alias}
        extra, more = _extra(table, row, aliases)
        rows.append(new | extra)
        if (row["correct"], row["matched_alias"]) != (new["correct"], new["matched_alias"]):
            was, now = row["matched_alias"] or "wrong", verdict.alias or "wrong"
            changes.append(_change(table, model, row, aliases) | {"was": was, "now": now, "reason": verdict.reason})
        changes += [_change(table, model, row, aliases) | m for m in more]
    after = pl.DataFrame(rows, schema=before.schema)
    return Regraded(table, model, path, before, after, pl.DataFrame(changes, schema=CHANGES))


def _verdict(table: str, row: Mapping[str, Any], aliases: Aliases) -> Verdict:
    if table == "recognition":
        entity = row["entity_id"]
        return judge(row["answer_text"], aliases.names[entity], aliases.rivals(entity))
    return judge(row["answer_text"], aliases.facts[row["question_id"]])


def _extra(table: str, row: Mapping[str, Any], aliases: Aliases) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The second grade of a row, if it has one: new columns, and how it changed."""
    if table == "recovered" and row["strategy"] != "oracle_name" and row["name_correct"] is not None:
        found = judge(row["written_name"], aliases.names[row["entity_id"]], aliases.rivals(row["entity_id"]))
        return _second(row, "name_correct", row["written_name"], found)
    if table == "outcomes" and row["moved_to_donor"] is not None:
        donor = f"{row['donor_entity_id']}/{row['question_id'].rpartition('/')[2]}"
        if donor in aliases.facts:
            return _second(row, "moved_to_donor", row["answer_text"], judge(row["answer_text"], aliases.facts[donor]))
    return {}, []


def _second(
    row: Mapping[str, Any], column: str, text: str, found: Verdict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    new = found.alias is not None
    changed = {
        "answer_text": text,
        "was": f"{column}: {_yes(row[column])}",
        "now": f"{column}: {_yes(new)}",
        "reason": found.reason,
    }
    return {column: new}, [changed] if new != row[column] else []


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _change(table: str, model: str, row: Mapping[str, Any], aliases: Aliases) -> dict[str, Any]:
    names = {"answers": "condition", "recovered": "strategy", "outcomes": "intervention", "recognition": "style"}
    accepted = aliases.names[row["entity_id"]] if table == "recognition" else aliases.facts[row["question_id"]]
    return {
        "table": table,
        "model": model,
        "about": row.get("question_id") or row["picture_id"],
        "condition": row[names[table]],
        "answer_text": row["answer_text"].strip(),
        "accepted": ", ".join(accepted),
    }


def counts(found: Sequence[Regraded]) -> pl.DataFrame:
    """Per table, model and condition: answers, changed grades, right ones before and after."""
    names = {"answers": "condition", "recovered": "strategy", "outcomes": "intervention", "recognition": "style"}
    parts = [
        pl.DataFrame(
            {
                "table": r.table,
                "model": r.model,
                "condition": r.before[names[r.table]],
                "right_before": r.before["correct"],
                "right_after": r.after["correct"],
            }
        )
        for r in found
    ]
    keys = ["table", "model", "condition"]
    changed = (pl.col("right_before") != pl.col("right_after")).sum().alias("changed")
    table = pl.concat(parts).group_by(keys, maintain_order=True)
    return table.agg(pl.len().alias("answers"), changed, pl.col("right_before", "right_after").sum())


def losses(
    found: Sequence[Regraded], results: Path, backbones: Mapping[str, str], n_boot: int, seed: int
) -> pl.DataFrame:
    """Degradation of every VLM on all questions, before and after, with intervals.

    Args:
        found: `regrade`.
        results: the folder of results.
        backbones: VLM: the language model it was trained from.
        n_boot: bootstrap draws over entities.
        seed: of the draws.
    """
    tables = {(r.table, r.model): r for r in found}
    rows: list[dict[str, Any]] = []
    for model, backbone in backbones.items():
        if ("answers", model) not in tables or ("answers", backbone) not in tables:
            continue
        questions = read_table(results / "build_questions" / model / "questions.parquet", schemas.QUESTIONS)
        for when in ("before", "after"):
            text, own, seen = (
                getattr(tables[key], when)
                for key in (("answers", backbone), ("answers", model), ("recognition", model))
            )
            table = degradation(pair_answers(text, own, questions, seen), n_boot, seed)
            kept = table.filter(pl.col("gate").is_in(["all", "recognised"]), pl.col("relation") == "all")
            rows += [{"model": model, "grades": when, **row} for row in kept.iter_rows(named=True)]
    return pl.DataFrame(rows, infer_schema_length=None)
