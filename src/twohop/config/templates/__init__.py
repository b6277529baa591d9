"""Prompts of common relations, written and reviewed by hand (`templates.json`), by language and kind of entity.

A folder of their own: an edit re-runs the step that asks for them, and no other.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

from twohop.config._data import BuildQuestions

TEMPLATES = Path(__file__).with_name("templates.json")


def find_template(section: BuildQuestions, relation: str) -> str | None:
    """The prompt of a relation: the user's, or the one that is shipped in the section's language."""
    return section.templates.get(relation) or shipped_templates(section.language).get(relation)


@functools.cache
def shipped_templates(language: str) -> Mapping[str, str]:
    """Prompt by relation; each holds `{entity}` once and ends where the answer starts."""
    kinds: dict[str, dict[str, str]] = json.loads(TEMPLATES.read_text(encoding="utf-8"))[language]
    return {relation: text for prompts in kinds.values() for relation, text in prompts.items()}
