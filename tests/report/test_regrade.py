"""The present grader on stored answers that an older one graded."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from study_tables import write_study
from twohop.errors import ArtifactError
from twohop.report import counts, losses, regrade
from twohop.store import read_table, schemas, sha256_file, write_table


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A study whose stored grades are the present grader's, but for those that a test spoils."""
    write_study(tmp_path / "results", n_entities=6)
    for found in list(regrade(tmp_path / "results")):
        write_table(found.path, found.after, getattr(schemas, found.table.upper()))
    return tmp_path / "results"


def _all(results: Path, more: pl.DataFrame | None = None) -> pl.DataFrame:
    return pl.concat([r.reasons for r in regrade(results, more)])


def test_grades_of_the_present_grader_stay(results: Path) -> None:
    assert _all(results).is_empty()
    table = counts(list(regrade(results)))
    assert table["changed"].sum() == 0
    assert table["right_before"].to_list() == table["right_after"].to_list()
    assert set(table["table"]) == {"answers", "recognition", "recovered", "outcomes"}


def _spoil(results: Path) -> str:
    path = results / "run_benchmark/late/answers.parquet"
    table = read_table(path, schemas.ANSWERS)
    texts = [" not Yes", *table["answer_text"].to_list()[1:]]
    flags = [True, *table["correct"].to_list()[1:]]
    aliases = ["Yes", *table["matched_alias"].to_list()[1:]]
    spoilt = table.with_columns(
        answer_text=pl.Series(texts), correct=pl.Series(flags), matched_alias=pl.Series(aliases)
    )
    write_table(path, spoilt, schemas.ANSWERS)
    return table["question_id"][0]


def test_a_changed_grade_is_shown_with_its_reason(results: Path) -> None:
    question = _spoil(results)
    (row,) = _all(results).to_dicts()
    assert (row["table"], row["model"], row["condition"], row["about"]) == ("answers", "late", "text", question)
    assert (row["answer_text"], row["was"], row["now"], row["reason"]) == ("not Yes", "Yes", "wrong", "denied")
    changed = counts(list(regrade(results))).filter(pl.col("changed") > 0)
    assert (changed["right_before"] - changed["right_after"]).to_list() == [1]


def test_a_further_alias_makes_answers_right(results: Path) -> None:
    entity = read_table(results / "run_benchmark/late/answers.parquet", schemas.ANSWERS)["entity_id"][0]
    more = pl.DataFrame({"entity_id": [entity], "relation": ["capital"], "alias": ["no"]})
    found = _all(results, more)
    assert set(found["about"]) == {f"{entity}/capital"}
    assert {*found["was"]} == {"wrong"}
    assert {*found["now"]} == {"no"}
    with pytest.raises(ArtifactError, match="never asked"):
        _all(results, more.with_columns(relation=pl.lit("colour")))


def test_the_degradation_is_given_before_and_after(results: Path) -> None:
    _spoil(results)
    table = losses(list(regrade(results)), results, {"late": "lm", "absent": "lm"}, 100, 0)
    assert set(table["model"]) == {"late"}
    own = table.filter(pl.col("comparison") == "b,c", pl.col("gate") == "all")
    before, after = (own.filter(pl.col("grades") == when).row(0, named=True) for when in ("before", "after"))
    assert before["compared"] == after["compared"]
    assert before["reference"] - after["reference"] == pytest.approx(1 / before["n_questions"])


def test_no_answers_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no stored answers"):
        list(regrade(tmp_path))


def _twohop(cwd: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "twohop", "regrade", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command_writes_elsewhere_and_leaves_results_alone(results: Path) -> None:
    question, root = _spoil(results), results.parent
    (root / "params.yaml").write_text((Path(__file__).parents[2] / "tests/tiny/params.yaml").read_text())
    before = {p: sha256_file(p) for p in results.rglob("*.parquet")}
    done = _twohop(root, "--out", "regraded")
    assert done.returncode == 0, done.stderr
    assert f"answers late text {question}: 'not Yes' [Yes]: Yes -> wrong (denied)" in done.stdout
    assert "1 grades change" in done.stdout
    assert before == {p: sha256_file(p) for p in results.rglob("*.parquet")}
    again = read_table(root / "regraded/run_benchmark/late/answers.parquet", schemas.ANSWERS)
    assert not again["correct"][0]
    assert pl.read_csv(root / "regraded/changes.csv").height == 1
    refused = _twohop(root, "--out", "results/new")
    assert refused.returncode == 2
    assert "outside results" in refused.stderr


def test_what_has_no_answer_keeps_no_grade(results: Path) -> None:
    path = results / "patch_activations/late/outcomes.parquet"
    table = read_table(path, schemas.OUTCOMES)
    first = pl.int_range(pl.len()) == 0
    columns = ("answer_text", "correct", "matched_alias")
    mute = table.with_columns(pl.when(first).then(None).otherwise(pl.col(c)).alias(c) for c in columns)
    write_table(path, mute, schemas.OUTCOMES)
    found = {(r.table, r.model): r.after for r in regrade(results)}
    assert found["outcomes", "late"].row(0, named=True) == mute.row(0, named=True)
    assert _all(results).is_empty()
