"""docs/params.md is what the typed models say."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from twohop.config import AssembledVlm, LocalFolder, ModelEntry, PackageBackbone, Params, RandomModel
from twohop.config._docs import COMMAND, PAGE, render_docs

TOP = Path(__file__).parents[2]


def test_page_is_up_to_date():
    want, have = render_docs(TOP / "params.yaml"), (TOP / PAGE).read_text(encoding="utf-8")
    diff = difflib.unified_diff(have.splitlines(), want.splitlines(), "docs/params.md", "generated", lineterm="", n=1)
    if want != have:
        pytest.fail("\n".join([*diff, "", f"docs/params.md is out of date; fix: {COMMAND}"]), pytrace=False)


def _sections() -> Iterator[type[BaseModel]]:
    yield from (ModelEntry, PackageBackbone, AssembledVlm, RandomModel, LocalFolder, Params)
    for name, field in Params.model_fields.items():
        if name != "models":
            yield from _with_inner(field.annotation)


def _with_inner(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield section
    for field in section.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _with_inner(field.annotation)


@pytest.mark.parametrize("section", list(_sections()), ids=lambda s: s.__name__)
def test_every_key_says_what_it_means(section):
    undocumented = [
        k
        for k, f in section.model_fields.items()
        if not f.description and not (section is Params and issubclass(f.annotation, BaseModel))
    ]
    assert not undocumented
    assert section.__doc__


def test_every_source_kind_has_its_table():
    kinds = {get_args(s.model_fields["kind"].annotation)[0] for s in list(_sections())[1:5]}
    text = render_docs(TOP / "params.yaml")
    assert all(f"source of kind {k}\n" in text for k in kinds)
