"""The short form of a catalogue entry: what it stands for, and what is refused in which words."""

import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from twohop.config import AssembledVlm, ModelEntry, Params, parse_params, section_keys, shipped_models
from twohop.config._shipped import PAGE, render_catalogue, write_catalogue
from twohop.errors import ConfigError

# ruff: noqa: E501 (a table reads better in one line per case)

TOP = Path(__file__).parents[2]
A, B = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return yaml.safe_load((TOP / "params.yaml").read_text(encoding="utf-8"))


def with_models(good: dict[str, Any], **models: Any) -> dict[str, Any]:
    tree = copy.deepcopy(good)
    tree["models"] |= {name.replace("_", "-"): value for name, value in models.items()}
    return tree


def parse(good: dict[str, Any], **models: Any) -> Params:
    return parse_params(with_models(good, **models), "params.yaml")


def faults(good: dict[str, Any], **models: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(good, **models)
    return caught.value.what.splitlines()


def test_a_pair_on_the_hub_becomes_two_entries(good):
    params = parse(good, my_vlm={"vlm": "o/vlm", "revision": A, "backbone": "o/llm", "backbone_revision": B})
    vlm, llm = params.models["my-vlm"], params.models["my-vlm-backbone"]
    assert vlm.source.model_dump() == {"kind": "hub", "id": "o/vlm", "revision": A}
    assert llm.source.model_dump() == {"kind": "hub", "id": "o/llm", "revision": B}
    assert (vlm.backbone, vlm.role, llm.role) == ("my-vlm-backbone", "vlm", "backbone")
    assert (vlm.prompt, llm.prompt, llm.same_weights_as) == ("chat", "chat", None)


def test_an_organism_of_the_catalogue_trains_under_its_own_name(good):
    source = parse(good, eyes={"catalog": "flags-cross"}).models["eyes"].source
    assert isinstance(source, AssembledVlm)
    assert source.projector == "results/train_projector/eyes/projector.safetensors"


def test_an_expanded_entry_is_a_full_one(good):
    """What a step gets as JSON is read back as the same entry."""
    params = parse(good, my={"vlm": "./a", "loading": {"dtype": "float16"}, "note": "n", "licence": "MIT"})
    for name in ("my", "my-backbone"):
        (value,) = section_keys(params, [f"models.{name}"]).values()
        assert ModelEntry.model_validate(value) == params.models[name]
    assert params.models["my-backbone"].loading.dtype == "float16"


def test_a_native_model_is_its_own_backbone_and_says_so(good):
    llm = parse(good, my={"vlm": "o/native", "revision": A}).models["my-backbone"]
    assert llm.source.model_dump() == {"kind": "hub", "id": "o/native", "revision": A}
    assert llm.same_weights_as == "my"
    assert "text alone" in llm.note


def test_two_models_of_one_backbone_share_it_and_other_prompts_do_not(good):
    pair = {"backbone": "o/llm", "backbone_revision": B, "revision": A}
    params = parse(
        good, one={"vlm": "o/1", **pair}, two={"vlm": "o/2", **pair}, three={"vlm": "o/3", **pair, "prompt": "plain"}
    )
    assert [params.models[m].backbone for m in ("one", "two", "three")] == [
        "one-backbone",
        "one-backbone",
        "three-backbone",
    ]
    assert "two-backbone" not in params.models


def test_a_backbone_of_the_file_is_named(good):
    params = parse(good, my={"vlm": "./folder", "backbone": "smollm2-135m", "prompt": "plain", "role": "control"})
    assert (params.models["my"].backbone, params.models["my"].role) == ("smollm2-135m", "control")
    assert "my-backbone" not in params.models


def test_keys_of_the_file(good):
    params = parse(good, my={"vlm": "./a"}, flags={"catalog": "flags-early"})
    assert [params.key_of(m) for m in ("my", "my-backbone", "smollm2-135m")] == ["my", "my", "smollm2-135m"]
    assert [params.is_shipped(m) for m in ("my", "flags", "smollm2-135m")] == [False, True, False]


def test_an_entry_of_the_shipped_catalogue(good):
    params = parse(good, my={"catalog": "llava-1.5-7b", "revision": A, "backbone_revision": B})
    shipped, vlm = shipped_models()["llava-1.5-7b"], params.models["my"]
    assert vlm.source.model_dump() == {"kind": "hub", "id": shipped.vlm, "revision": A}
    assert params.models["my-backbone"].source.model_dump() == {"kind": "hub", "id": shipped.backbone, "revision": B}
    assert (vlm.family, vlm.licence) == ("llava", shipped.licence)
    assert params.models["my-backbone"].prompt == "plain"  # Vicuna has no chat template


def test_an_organism_of_the_catalogue_uses_the_backbone_that_is_there(good):
    params = parse(good, early={"catalog": "flags-early"})
    assert params.models["early"].source == params.models["flags-early"].source
    assert params.models["early"].backbone == "smollm2-135m"


def test_full_entries_are_left_alone(good):
    assert parse_params(good, "x").model_dump() == Params.model_validate(good).model_dump()


HUB = {"vlm": "o/n", "revision": A}
BAD = [
    ({**HUB, "revision": "main"}, "models.my-vlm.revision: is 'main'; allowed: a commit, 40 hex digits"),
    ({**HUB, "revision": A[:39]}, "models.my-vlm.revision: is 'aaaa"),
    ({"vlm": "o/n"}, "models.my-vlm.revision: missing; allowed: a commit, 40 hex digits (`twohop models check o/n` prints"),
    ({**HUB, "backbone": "o/l"}, "models.my-vlm.backbone_revision: missing; allowed: a commit"),
    ({**HUB, "backbone": "o/l", "backbone_revision": "v1"}, "models.my-vlm.backbone_revision: is 'v1'; allowed: a commit"),
    ({**HUB, "backbone_revision": B}, "models.my-vlm.backbone_revision: is 'bbb"),
    ({**HUB, "backbone": "llm"}, "models.my-vlm.backbone: is 'llm'; allowed: owner/name on the hub, a path that starts with . or /, or a model with role backbone (smollm2-135m)"),
    ({"vlm": "name", "revision": A}, "models.my-vlm.vlm: is 'name'; allowed: owner/name on the hub, or a path that starts"),
    ({"vlm": "./a", "revision": A}, "models.my-vlm.revision: is 'aaaa"),
    ({"vlm": 3}, "models.my-vlm.vlm: is 3; allowed: text or null"),
    ({**HUB, "rol": "vlm"}, "models.my-vlm.rol: unknown key; did you mean role?"),
    ({**HUB, "role": "backbone"}, "models.my-vlm.role: is 'backbone'; allowed: one of vlm, control"),
    ({**HUB, "prompt": "chatty"}, "models.my-vlm.prompt: is 'chatty'; allowed: "),
    ({**HUB, "loading": {"dtype": "fp8"}}, "models.my-vlm.loading.dtype: is 'fp8'; allowed: one of auto, float32"),
    ({**HUB, "source": {}}, "models.my-vlm.source: unknown key"),
    ({**HUB, "catalog": "gemma-3-4b"}, "models.my-vlm: has both vlm and catalog; allowed: one of them"),
    ({"catalog": "llava-1.5-7"}, "models.my-vlm.catalog: is 'llava-1.5-7'; allowed: a name that `twohop models list` shows; did you mean llava-1.5-7b?"),
    ({"catalog": "gemma-3-4b"}, "models.my-vlm.revision: missing; allowed: a commit, 40 hex digits; the catalogue holds no verified commit of google/gemma-3-4b-it, `twohop models check gemma-3-4b` prints it"),
    ({"catalog": "gemma-3-4b", "revision": "main"}, "models.my-vlm.revision: is 'main'; allowed: a commit"),
    ({"catalog": "flags-early", "revision": A}, "models.my-vlm.revision: is 'aaaa"),
    ({"catalog": "molmo-7b-d"}, "models.my-vlm.catalog: is 'molmo-7b-d', which wants code from its repository to run"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "line"), BAD, ids=range(len(BAD)))
def test_one_fault_is_one_line_with_the_path_of_the_file(good, value, line):
    (found,) = faults(good, my_vlm=value)
    assert found.startswith(line)


def test_every_fault_of_a_file_is_named_at_once(good):
    tree = with_models(good, my_vlm={"vlm": "o/n", "revision": "main", "rol": 1}, other={"vlm": "o/n"})
    tree["hash_code"] = 3
    with pytest.raises(ConfigError) as caught:
        parse_params(tree, "params.yaml")
    paths = [line.split(":")[0] for line in caught.value.what.splitlines()]
    assert paths == ["models.my-vlm.rol", "models.my-vlm.revision", "models.other.revision", "hash_code"]


def test_names(good):
    assert faults(good, **{"a b": HUB})[0].startswith("models.a b: is no usable name")
    other = {"role": "backbone", "source": {"kind": "local", "path": "x"}, "licence": "x"}
    (line,) = faults(good, my=HUB, my_backbone=other)
    assert line.startswith("models.my-backbone: is the name of models.my's backbone, too")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"same_weights_as": "nope"},
            "models.llm.same_weights_as: is 'nope'; allowed: a model that names llm as its backbone",
        ),
        (
            {"source": {"kind": "local", "path": "y"}},
            "models.llm.same_weights_as: is 'vlm', whose source is another one",
        ),
    ],
)
def test_same_weights_are_checked_in_the_long_form(good, change, line):
    llm = {
        "role": "backbone",
        "same_weights_as": "vlm",
        "source": {"kind": "local", "path": "x"},
        "licence": "x",
        **change,
    }
    vlm = {"role": "vlm", "backbone": "llm", "source": {"kind": "local", "path": "x"}, "licence": "x"}
    (found,) = faults(good, llm=llm, vlm=vlm)
    assert found.startswith(line)


# --- the shipped catalogue --------------------------------------------------------------------------------------------


def test_the_papers_fourteen_are_there_and_no_commit_is_made_up():
    models = shipped_models()
    assert sum(m.status == "confirmed" for m in models.values()) == 6
    assert sum(m.status == "inferred" for m in models.values()) == 8
    for model in models.values():
        assert model.verified or (model.revision is None and model.backbone_revision is None)
        assert (model.vlm is None) == (model.source is not None)


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_every_shipped_model_can_be_taken(good, name):
    model = shipped_models()[name]
    recipe = (model.source or {}).get("recipe", "caption")
    if model.remote_code or recipe not in get_args(AssembledVlm.model_fields["recipe"].annotation):
        assert faults(good, my={"catalog": name})
        return
    commits = {"revision": A} if model.vlm else {}
    commits |= {"backbone_revision": B} if model.backbone else {}
    params = parse(good, my={"catalog": name, **commits})
    assert params.models["my"].role == model.role
    native = model.vlm is not None and model.backbone is None
    assert (params.models[params.models["my"].backbone or ""].same_weights_as == "my") == native


def test_table_of_the_page_is_up_to_date():
    page = (TOP / PAGE).read_text(encoding="utf-8")
    assert render_catalogue() in page
    assert write_catalogue(page) == page, "docs/models.md is out of date; fix: python -m twohop.config._docs"
    assert all(re.search(rf"^\| `{re.escape(name)}` \|", page, re.M) for name in shipped_models())
