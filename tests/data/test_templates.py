"""The shipped prompts."""

from twohop.data import shipped_relations, shipped_template


def test_every_prompt_holds_the_entity_once_and_ends_where_the_answer_starts():
    assert len(shipped_relations()) == 23
    for relation in shipped_relations():
        text = shipped_template(relation)
        assert text is not None
        assert text.count("{entity}") == 1
        assert text.startswith("Consider the following ")
        assert text[-1].isalpha()
    assert shipped_template("no such") is None
