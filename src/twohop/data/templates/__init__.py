"""Reviewed prompts of common relations."""

from twohop.data.templates._templates import shipped_relations, shipped_template

__all__ = ["shipped_relations", "shipped_template"]
