"""The whole of params.yaml as one frozen model, with the relations between its keys."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from twohop.config import _analysis as a
from twohop.config import _data as d
from twohop.config._base import Section
from twohop.config._catalogue import ModelEntry

STYLE_SOURCES: Mapping[str, str] = {
    "1x1": "flag-icons",
    "4x3": "flag-icons",
    "circle": "circle-flags",
    "simple": "circle-flags",
    "noto_original": "noto",
    "noto_waved": "noto",
}
"""Art source of every rendering style."""


class Params(Section):
    """Everything that a user can set."""

    models: dict[str, ModelEntry] = Field(min_length=1)
    curate_entities: d.CurateEntities
    fetch_images: d.FetchImages
    build_questions: d.BuildQuestions
    prepare_model: a.PrepareModel
    train_projector: a.TrainProjector
    run_benchmark: a.RunBenchmark
    extract_activations: a.ExtractActivations
    score_attribution: a.ScoreAttribution
    patch_activations: a.PatchActivations
    train_probes: a.TrainProbes
    recover_recall: a.RecoverRecall
    plot_figures: a.PlotFigures
    render_report: a.RenderReport

    @field_validator("models")
    @classmethod
    def _known_backbones(cls, models: dict[str, ModelEntry], _info: ValidationInfo) -> dict[str, ModelEntry]:
        for name, entry in models.items():
            if not name.replace("-", "").replace(".", "").isalnum():
                raise ValueError(f"model name {name!r}: use letters, digits, '-' and '.' only")
            if entry.backbone is not None and (
                entry.backbone not in models or models[entry.backbone].role != "backbone"
            ):
                raise ValueError(f"{name}: backbone {entry.backbone!r} is no backbone of this catalogue")
        return models

    @model_validator(mode="after")
    def _fits_together(self) -> "Params":
        problems = list(_cross_field_problems(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def names(self, *roles: str) -> list[str]:
        """Catalogue names with one of these roles, in file order (all of them when no role is given)."""
        return [n for n, e in self.models.items() if not roles or e.role in roles]


def _cross_field_problems(p: Params) -> Iterable[str]:
    missing = [r for r in p.curate_entities.relations if r not in p.build_questions.templates]
    if missing:
        yield f"build_questions.templates: no template for relation(s) {', '.join(missing)}"
    for relation, text in p.build_questions.templates.items():
        if text.count("{entity}") != 1:
            yield f"build_questions.templates.{relation}: must hold {{entity}} exactly once"
    for text in [*p.run_benchmark.recognition_prompts, p.recover_recall.name_then_answer]:
        if text.count("{entity}") != 1:
            yield f"a prompt must hold {{entity}} exactly once: {text!r}"
    if p.build_questions.style not in p.fetch_images.styles:
        yield f"build_questions.style: {p.build_questions.style} is not rendered (fetch_images.styles)"
    if STYLE_SOURCES[p.build_questions.style] in p.train_projector.train_sources:
        yield "build_questions.style: its art source is in train_projector.train_sources, so it would not be held out"
    if "resid_post" not in p.extract_activations.sites:
        yield "extract_activations.sites: train_probes reads resid_post, which is not extracted"


def section_keys(params: Params, dotted: Iterable[str]) -> dict[str, Any]:
    """The plain values at dotted keys, e.g. `models.flags-early` (a model name may hold dots)."""
    tree = params.model_dump(mode="json")
    return {key: _pick(tree, key) for key in dotted}


def _pick(tree: Mapping[str, Any], dotted: str) -> Any:
    if dotted in tree:
        return tree[dotted]
    for i in range(len(dotted)):
        head, rest = dotted[:i], dotted[i + 1 :]
        if dotted[i] == "." and isinstance(tree.get(head), Mapping):
            return _pick(cast("Mapping[str, Any]", tree[head]), rest)
    raise KeyError(dotted)
