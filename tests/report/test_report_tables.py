"""Tables: every row as wide as its head, every model in it, every answer with its grade."""

from twohop.report import answers, limits, tables


def test_rows_fit_their_heads(summary):
    for table in tables(summary):
        assert table.rows, table.title
        assert {len(r) for r in table.rows} == {len(table.head)}, table.title


def test_headline_table_has_vlms_and_control_with_both_gates(summary):
    table = tables(summary)[0]
    assert [row[:2] for row in table.rows] == [
        (model, gate) for model in ("late", "early", "blind (control)") for gate in ("all questions", "picture named")
    ]


def test_every_answer_is_listed_with_what_matched(study):
    listed = list(answers(study))
    assert len(listed) == sum(t.height for t in study.answers.values())
    assert all(bool(a.alias) == a.correct for a in listed)
    assert {a.condition for a in listed} == {"name", "picture", "blank picture"}
    assert all(bool(a.picture) == (a.condition == "picture") for a in listed)


def test_an_answer_can_be_audited(study):
    listed = list(answers(study))
    assert all(bool(a.reason) != a.correct for a in listed)
    assert {a.reason for a in listed} == {"", "no match"}
    assert all(not a.gates and not a.named for a in listed if a.model == "lm")
    seen = [a for a in listed if a.condition == "picture"]
    assert all(a.named.startswith("Land (") and "; Land (" in a.named for a in seen)
    assert all(("(right)" in a.named) == ("recognised" in a.gates) for a in seen)


def test_the_two_by_two_table_holds_every_question_once(summary):
    table = next(t for t in tables(summary) if t.title == "Right and wrong, question by question")
    assert all(sum(int(cell) for cell in row[4:8]) == int(row[3]) for row in table.rows)
    assert {row[2] for row in table.rows} >= {"all questions", "picture named"}


def test_limits_name_the_sample(summary):
    assert limits(summary)[0].startswith("12 entities and 24 questions: intervals from so few")
    models = {**summary["models"], "late-text": {"same_weights_as": "late"}}
    (said,) = set(limits({**summary, "models": models})) - set(limits(summary))
    assert said.startswith("late is compared with its own weights, run on text alone (late-text)")


def test_patching_stands_beside_prompting_with_its_two_by_two(summary):
    (table,) = [t for t in tables(summary) if t.title == "Patching beside prompting"]
    assert [row[0] for row in table.rows] == ["late"] * 3 + ["early"] * 3
    for row in table.rows:
        assert sum(int(n) for n in row[-1].split(" / ")) == int(row[2]) == 12


def test_wrong_entitys_row_has_the_unpatched_rate_and_the_difference(summary):
    (table,) = [t for t in tables(summary) if t.title.startswith("A wrong entity's activations")]
    found = summary["patching"]["late"]
    gap = found["moved_to_donor"]["value"] - found["moved_to_donor_without_patch"]["value"]
    assert table.rows[0][4].startswith(f"{100 * gap:+.0f} %")
