"""Prompts of common relations, written and reviewed by hand (`templates.json`), for tables that bring none.

Each names the kind of thing once, holds `{entity}` once, and ends where the answer starts.
"""

import functools
import json
from importlib import resources


def shipped_template(relation: str) -> str | None:
    """The English prompt of a relation; None when there is none of that name."""
    return _templates().get(relation)


def shipped_relations() -> tuple[str, ...]:
    """Relations that have a prompt, sorted."""
    return tuple(sorted(_templates()))


@functools.cache
def _templates() -> dict[str, str]:
    text = resources.files("twohop.data.templates").joinpath("templates.json").read_text(encoding="utf-8")
    return {relation: prompt for group in json.loads(text).values() for relation, prompt in group.items()}
