"""dvc.yaml, made from Snakemake's DAG: one stage per rule, one matrix item per model.

A rule whose models read files of different names (a backbone's, a projector) becomes a `foreach` over a dict, which
alone can hold such names; the addresses are the same: `rule@model`. So does one whose models stand in params.yaml below
another name: a backbone that a short entry names is a part of that entry (`Params.key_of`). What was taken from the
shipped catalogue depends on that file, too.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from twohop.config import Params, source_pictures, source_tables
from twohop.errors import TwohopError
from twohop.lineage._code import CODE_FILE
from twohop.lineage._records import digest_of
from twohop.lineage._snakemake import RuleJob, graph

_HEADER = "# Made from the Snakefile by `twohop write_dvc`; do not edit.\n"
NO_FILES = ("workflow/none.txt", "workflow/none-2.txt", "workflow/none-3.txt")
"""DVC wants the same number of deps for every item, and none twice; a model that reads fewer files names these."""
CATALOG_FILE = "src/twohop/catalog.yaml"
_MODEL_KEY, _ITEM_KEY = "models.${key}", "models.${item.key}"
_METRICS = ("headline.json",)
"""What `dvc metrics diff` shows: a dozen numbers per model (the other JSON files hold thousands)."""
Variant = dict[str, Any]


def dvc_yaml(params: Params) -> str:
    """The text of dvc.yaml for the Snakefile and params.yaml of the working directory."""
    by_rule: dict[str, list[RuleJob]] = defaultdict(list)
    with graph() as g:
        for job in g.jobs:
            by_rule[job.rule].append(job)
    stages = {"hash_code": _hash_stage(params), **{rule: _stage(jobs, params) for rule, jobs in by_rule.items()}}
    body = yaml.safe_dump({"stages": stages, "plots": _plots(stages)}, sort_keys=False, width=10**6)
    return f"{_HEADER}# fingerprint: {fingerprint(params)}\n{body}"


def check_fingerprint(params: Params, path: Path = Path("dvc.yaml")) -> None:
    """Refuse a dvc.yaml that was made from other rules, another catalogue or other imports.

    Raises:
        TwohopError: it is out of date.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if f"# fingerprint: {fingerprint(params)}\n" not in text:
        raise TwohopError("it does not fit the Snakefile and params.yaml any more", str(path), "run `twohop write_dvc`")


def fingerprint(params: Params, root: Path = Path()) -> str:
    """16 hex digits over all that shapes the graph: rules, the catalogue's names, roles and files, the source's files,
    one setting.
    """
    rules = [
        p.read_text(encoding="utf-8") for p in [root / "Snakefile", *sorted((root / "workflow/rules").glob("*.smk"))]
    ]
    models = {
        name: [entry.role, entry.backbone, getattr(entry.source, "projector", None), *_origin(params, name)]
        for name, entry in params.models.items()
    }
    source = params.curate_entities.source
    files = [*source_tables(source), *source_pictures(source)]
    return digest_of([rules, models, files, bool(params.hash_code.rerun_on_versions)])[:16]


def _origin(params: Params, model: str) -> list[str]:
    """What the graph further takes from a short entry; nothing of a full one."""
    key = params.key_of(model)
    return [*([key] if key != model else []), *([CATALOG_FILE] if params.is_shipped(model) else [])]


def _hash_stage(params: Params) -> Variant:
    """The one stage that no rule stands for: digests of the code, made again when a source file changes.

    DVC cannot see an upgraded library, so that with `rerun_on_versions` it has to look every time.
    """
    stage: Variant = {
        "cmd": "twohop hash_code",
        "deps": ["src/twohop"],
        "params": ["hash_code"],
        "outs": [{str(CODE_FILE): {"cache": False}}],
    }
    return stage | ({"always_changed": True} if params.hash_code.rerun_on_versions else {})


def _stage(jobs: list[RuleJob], params: Params) -> Variant:
    if jobs[0].model is None:
        (job,) = jobs
        whole = "models" in job.params and any(map(params.is_shipped, params.models))
        return _render(job, [*job.inputs, *([CATALOG_FILE] if whole else [])])
    shared, own = _split(jobs, params)
    item_deps = [f"${{item.input{i}}}" for i in range(max(map(len, own.values())))]
    variants = {job.model or "": _render(job, [*shared, *item_deps]) for job in jobs}
    keys = {m: params.key_of(m) for m, v in variants.items() if _MODEL_KEY in v["params"]}
    renamed = any(m != key for m, key in keys.items())
    if renamed:
        variants = {
            m: v | {"params": [_ITEM_KEY if k == _MODEL_KEY else k for k in v["params"]]} for m, v in variants.items()
        }
    first = variants[jobs[0].model]
    odd = [m for m, v in variants.items() if v != first]
    if odd:
        raise TwohopError(
            f"rule {jobs[0].rule}: its outputs or params differ in kind for {', '.join(odd)}", "workflow/rules"
        )
    if not item_deps and not renamed:
        return {"matrix": {"model": list(variants)}, **_rename_key(first)}
    n = len(item_deps)
    items = {m: {f"input{i}": (*own[m], *NO_FILES)[i] for i in range(n)} for m in variants}
    if renamed:
        items = {m: {**item, "key": keys[m]} for m, item in items.items()}
    return {"foreach": items, "do": first}


def _plots(stages: Mapping[str, Variant]) -> list[Variant]:
    """What `dvc plots diff` draws: curves by layer with a line per model, and the figures side by side."""
    return [
        _curve("probe accuracy by layer", stages["train_probes"], "curve.csv", "accuracy"),
        _curve("tuned lens at the entity by layer", stages["measure_resolution"], "curve.csv", "value"),
        _curve("MLP attribution at the entity by layer", stages["score_attribution"], "profile.csv", "share"),
        *({out: None} for out in stages["plot_figures"]["outs"] if out.endswith(".svg")),
    ]


def _curve(title: str, stage: Variant, file: str, column: str) -> Variant:
    template = next(out for out in stage.get("do", stage)["outs"] if out.endswith(f"/{file}"))
    models = stage["matrix"]["model"] if "matrix" in stage else stage["foreach"]
    lines = {re.sub(r"\$\{(key|item\.model)\}", model, template): column for model in models}
    return {title: {"x": "layer", "y": lines, "x_label": "layer", "y_label": column}}


def _split(jobs: list[RuleJob], params: Params) -> tuple[list[str], dict[str, list[str]]]:
    """Inputs that all models share once the model's name is a placeholder, and the others of each model.

    DVC wants the same number of deps for every item: see `NO_FILES`.
    """
    generic = {job.model or "": {_template(f, job.model): f for f in job.inputs} for job in jobs}
    for job in jobs:
        if f"models.{job.model}" in job.params and params.is_shipped(job.model or ""):
            generic[job.model or ""][CATALOG_FILE] = CATALOG_FILE
    shared = {t for t in generic[jobs[0].model or ""] if all(t in g for g in generic.values())}
    return sorted(shared), {m: sorted(f for t, f in g.items() if t not in shared) for m, g in generic.items()}


def _template(text: str, model: str | None) -> str:
    """The model's name as a whole component of a path or of a dotted key becomes `${key}`."""
    if model is None:
        return text
    if "/" not in text:
        head, _, tail = text.partition(".")
        return f"{head}.${{key}}" if tail == model else text
    return "/".join("${key}" if part == model else part for part in text.split("/"))


def _render(job: RuleJob, deps: list[str]) -> Variant:
    outs = [_template(f, job.model) for f in job.outputs]
    plain = [f for f in outs if not f.endswith(_METRICS)]
    metrics = [f for f in outs if f.endswith(_METRICS)]
    stage: Variant = {
        "cmd": f"twohop run_stage {job.rule}{' ${key}' if job.model else ''}",
        "deps": deps,
        "params": [*(_template(k, job.model) for k in job.params), {str(CODE_FILE): [job.rule]}],
        "outs": plain,
    }
    return stage | ({"metrics": metrics} if metrics else {})


def _rename_key(stage: Mapping[str, Any]) -> Variant:
    """`${key}` is for `foreach` over a dict; in a matrix DVC says `${item.model}`."""
    return json.loads(json.dumps(stage).replace("${key}", "${item.model}"))
