"""The few numbers that one looks at first when a setting was changed: a dozen per model, flat, without intervals.

`dvc metrics diff` shows them; the intervals are in `summary.json`, and without them a difference proves nothing.
"""

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
_DIGITS = 4
_PATHS: Mapping[str, tuple[str, ...]] = {
    "recall_from_name": ("degradation", "a,c", "all", "all", "reference", "value"),
    "recall_from_picture": ("degradation", "a,c", "all", "all", "compared", "value"),
    "degradation": ("degradation", "a,c", "all", "all", "degradation", "value"),
    "degradation_where_recognised": ("degradation", "a,c", "recognised", "all", "degradation", "value"),
    "names_the_picture": ("recognition", "{style}", "free", "value"),
    "ranks_its_name_first": ("recognition", "{style}", "ranked", "value"),
    "probe_at_embedding": ("probes", "{style}", "{feature}", "first", "value"),
    "probe_best": ("probes", "{style}", "{feature}", "best", "value"),
    "probe_resolved_depth": ("probes", "{style}", "{feature}", "resolved_depth", "value"),
    "mlp_centre_at_picture": ("attribution", "image", "mlp_centre_entity"),
    "mlp_centre_at_name": ("attribution", "text", "mlp_centre_entity"),
    "patch_recovers": ("patching", "recovered", "heuristic", "value"),
    "patch_minus_random_span": ("patching", "heuristic_minus_random", "value"),
    "naming_first_closes": ("recovery", "name_then_answer", "closed", "value"),
    "own_name_in_two_turns_closes": ("recovery", "two_turns", "closed", "value"),
}
"""Name -> path in the summary, the model's name being the second key."""


def headline(summary: Record, feature: str = "image_last") -> dict[str, dict[str, float]]:
    """Model -> name -> number; a number that is undefined or was not measured is left out."""
    style = summary["held_out"]["style"]
    found = {model: _numbers(summary, model, style, feature) for model in summary["models"]}
    return {model: numbers for model, numbers in found.items() if numbers}


def _numbers(summary: Record, model: str, style: str, feature: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, (section, *path) in _PATHS.items():
        keys = [model, *(key.format(style=style, feature=feature) for key in path)]
        value = _at(summary[section], keys)
        if value is not None:
            values[name] = round(float(value), _DIGITS)
    return values


def _at(tree: Any, keys: list[str]) -> Any:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree
