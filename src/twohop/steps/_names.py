"""The steps in the order of the chain, and what each declares, read from its source without importing it (or torch)."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twohop.errors import TwohopError

STEPS = (
    "curate_entities",
    "fetch_images",
    "prepare_model",
    "train_projector",
    "build_questions",
    "run_benchmark",
    "extract_activations",
    "score_attribution",
    "patch_activations",
    "train_probes",
    "measure_resolution",
    "recover_recall",
    "plot_figures",
    "render_report",
)


@dataclass(frozen=True)
class Declared:
    """The literal arguments of a module's `STEP = Step(...)`."""

    name: str
    params: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    per_model: bool = True
    in_shards: bool = False


def summary_of(step: str) -> str:
    """First paragraph of the step module's docstring, on one line."""
    paragraph = (ast.get_docstring(_tree(step)) or "").split("\n\n", 1)[0]
    return " ".join(paragraph.removeprefix(f"Step {step}:").split())


def declared(step: str) -> Declared:
    """What the step's module declares.

    Raises:
        TwohopError: there is no such step, or its `STEP` is not made of literals.
    """
    for node in _tree(step).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and ast.unparse(node.targets[0]) == "STEP":
            call: dict[str, Any] = {k.arg: ast.literal_eval(k.value) for k in node.value.keywords if k.arg}
            return Declared(**call)
    raise TwohopError(
        "no `STEP = Step(name=..., ...)` with literal keywords", f"twohop.steps.{step}", "declare it at the top"
    )


def _tree(step: str) -> ast.Module:
    path = Path(__file__).with_name(f"{step}.py")
    if step not in STEPS or not path.exists():
        raise TwohopError(f"no step {step!r}", "command line", f"one of: {', '.join(STEPS)}")
    return ast.parse(path.read_bytes())
