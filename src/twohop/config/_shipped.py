"""The catalogue that is shipped with the package (`src/twohop/catalog.yaml`), and its table in docs/models.md."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from twohop.config._base import Section

CATALOG = Path(__file__).resolve().parents[1] / "catalog.yaml"
PAGE = Path("docs/models.md")
START, END = "<!-- catalogue: generated -->", "<!-- end of the catalogue -->"
"""The lines of the page between which the table stands."""
_ORDER = ("confirmed", "inferred", "other", "organism")
_COLUMNS = (
    "name",
    "model",
    "backbone",
    "family",
    "size",
    "architecture",
    "degradation",
    "which",
    "gated",
    "licence",
    "remarks",
)
_STATUS = {
    "confirmed": "the paper's, confirmed",
    "inferred": "the paper's, inferred",
    "other": "open model",
    "organism": "ours",
}


class ShippedModel(Section):
    """One model of the shipped catalogue."""

    vlm: str | None = None
    """Repository of the vision-language model."""
    revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Its commit; null until somebody has looked it up."""
    backbone: str | None = None
    """Repository of the language model that it was trained from; absent for native models: the same weights on text."""
    backbone_revision: str | None = Field(default=None, pattern="^[0-9a-f]{40}$")
    """Its commit; null until somebody has looked it up."""
    source: dict[str, Any] | None = None
    """In place of `vlm`: a source that needs no hub."""
    backbone_source: dict[str, Any] | None = None
    """The language model of such a source."""
    family: str
    """Transformers' model_type."""
    parameters: str
    """About how many, e.g. 7B."""
    architecture: Literal["llava-style", "native", "cross-attention"]
    """How pictures get into the language model."""
    degradation: Literal["high", "low", "unknown"]
    """What the paper reports of recall from pictures against the backbone's from names."""
    status: Literal["confirmed", "inferred", "other", "organism"]
    """Of the paper's fourteen: confirmed by its figures, or inferred; another open model; this project's organism."""
    role: Literal["vlm", "control"] = "vlm"
    """Role in the study."""
    prompt: Literal["plain", "chat"] = "chat"
    """How the model is asked."""
    backbone_prompt: Literal["plain", "chat"] | None = None
    """How its backbone is asked, where that differs."""
    gated: bool = False
    """Whether the owner wants a form filled in before a download."""
    remote_code: bool = False
    """Whether the repository wants its own code to run, which is refused here."""
    licence: str
    """Licence of the weights."""
    verified: bool = False
    """Whether somebody has compared all of this with the hub."""
    unsure: list[Literal["vlm", "backbone", "family"]] = Field(default_factory=list[Any])
    """What is doubtful even without a look at the hub."""
    note: str = ""
    """One line for people."""


@functools.cache
def shipped_models() -> Mapping[str, ShippedModel]:
    """The shipped catalogue by name."""
    tree: dict[str, Any] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    return {name: ShippedModel.model_validate(value) for name, value in tree.items()}


def render_catalogue() -> str:
    """The table of docs/models.md, in Markdown."""
    head = f"| {' | '.join(_COLUMNS)} |"
    rows = sorted(shipped_models().items(), key=lambda item: _ORDER.index(item[1].status))
    return "\n".join([head, "|" + "---|" * len(_COLUMNS), *(_row(name, model) for name, model in rows)]) + "\n"


def _row(name: str, model: ShippedModel) -> str:
    doubts = [f"not sure: {', '.join(model.unsure)}"] if model.unsure else []
    remarks = [*doubts, *(["runs no code of the repository, so refused"] if model.remote_code else []), model.note]
    if not model.verified:
        remarks.insert(0, "unverified")
    cells = [
        f"`{name}`",
        f"`{model.vlm}`" if model.vlm else "made here",
        _backbone(model),
        model.family,
        model.parameters,
        model.architecture,
        model.degradation,
        _STATUS[model.status],
        "yes" if model.gated else "no",
        model.licence,
        "; ".join(filter(None, remarks)),
    ]
    return "| " + " | ".join(cells) + " |"


def _backbone(model: ShippedModel) -> str:
    if model.backbone_source is not None:
        return f"`{model.backbone_source.get('package', 'made here')}`"
    return f"`{model.backbone}`" if model.backbone else "the same weights, on text"


def write_catalogue(page: str) -> str:
    """A page with the table between its two marks made anew."""
    before, rest = page.split(START)
    return f"{before}{START}\n{render_catalogue()}{END}{rest.split(END)[1]}"
