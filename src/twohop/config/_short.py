"""The short form of a catalogue entry, and what it stands for.

    my-vlm: {vlm: org/name, revision: <40 hex>, backbone: org/llm, backbone_revision: <40 hex>}
    my-vlm: {vlm: ./folder, backbone: ./other-folder}
    my-vlm: {vlm: org/name, revision: <40 hex>}                       the same weights, on text alone, are the backbone
    my-vlm: {catalog: llava-1.5-7b, revision: <40 hex>, backbone_revision: <40 hex>}

Each becomes the VLM's full entry and, unless an entry with the same source is there, one of its backbone named
`my-vlm-backbone`. Two VLMs of one backbone share it.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pydantic import ValidationError

from twohop.config._base import Section
from twohop.config._catalogue import Loading
from twohop.config._shipped import ShippedModel, shipped_models

UNSTATED = "not stated in params.yaml"
SUFFIX = "-backbone"
_COMMIT = "a commit, 40 hex digits"
_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_REVISION = re.compile("^[0-9a-f]{40}$")
Describe = Callable[[type[Section], Any, tuple[str, ...]], list[str]]
"""Turns one fault of pydantic's into lines for people, for a section at a path."""


class ShortEntry(Section):
    """The short form: a VLM and its backbone by their names on the hub, or their folders, or a shipped model's name."""

    vlm: str | None = None
    """Owner and name on the hub, or a folder (a path that starts with `.` or `/`)."""
    revision: str | None = None
    """Commit of `vlm`, 40 hex digits; none for a folder."""
    catalog: str | None = None
    """In place of `vlm`: a name that `twohop models list` shows."""
    backbone: str | None = None
    """The language model that the VLM was trained from: owner and name on the hub, a folder, or the name of a backbone
    of this file. Absent: the VLM's own weights run on text alone, and the report says so."""
    backbone_revision: str | None = None
    """Commit of `backbone`, 40 hex digits."""
    role: Literal["vlm", "control"] = "vlm"
    """`vlm`: dissected in full; `control`: only benchmark, activations and probes."""
    prompt: Literal["plain", "chat"] | None = None
    """`chat` (when absent): prompts are the user's turn of the model's chat template; `plain`: as they are written."""
    backbone_prompt: Literal["plain", "chat"] | None = None
    """The same for the backbone; as the VLM is asked when absent."""
    loading: Loading = Loading()
    """How the weights of both are put into memory."""
    licence: str | None = None
    """Licence of the VLM's weights, as the card shows it."""
    note: str = ""
    """One line for the model card."""


@dataclass
class Expanded:
    """params.yaml with full entries only."""

    tree: Any
    faults: list[str] = field(default_factory=list[str])
    """Of the short entries; a line each."""
    bad: set[str] = field(default_factory=set[str])
    """Names of entries that stand for something else than was meant: faults below them mean nothing."""
    keys: dict[str, str] = field(default_factory=dict[str, str])
    """Name of a model -> name of the short entry it comes from, where these differ."""
    shipped: set[str] = field(default_factory=set[str])
    """Names of models that come from the shipped catalogue."""


def expand(tree: Any, describe: Describe) -> Expanded:
    """Replace every short entry; a tree that is nothing like params.yaml is returned as it is."""
    models: Any = cast("Any", tree).get("models") if isinstance(tree, Mapping) else None
    if not isinstance(models, Mapping) or not any(map(_is_short, cast("Mapping[Any, Any]", models).values())):
        return Expanded(tree)
    out = Expanded(tree)
    given = cast("Mapping[Any, Any]", models)
    entries = {name: value for name, value in given.items() if not _is_short(value)}
    made: dict[str, Any] = {}
    for name, value in given.items():
        made |= _expanded(str(name), value, {**entries, **made}, out, describe) if _is_short(value) else {name: value}
    out.tree = {**cast("Mapping[Any, Any]", tree), "models": made}
    return out


def _is_short(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"vlm", "catalog"} & set(cast("Mapping[Any, Any]", value)))


def _expanded(
    name: str, value: Mapping[Any, Any], others: Mapping[Any, Any], out: Expanded, describe: Describe
) -> dict[str, Any]:
    at = ("models", name)
    lines: list[str] = []
    try:
        short = ShortEntry.model_validate(value)
        lines = list(_faults(short, f"models.{name}", others, f"{name}{SUFFIX}"))
    except ValidationError as error:
        lines = [line for e in error.errors() for line in describe(ShortEntry, e, at)]
        wrong = {e["loc"][0] for e in error.errors() if e["loc"]}
        short = ShortEntry.model_validate({k: v for k, v in value.items() if k not in wrong})
        if not wrong & {"vlm", "catalog"}:
            found = _faults(short, f"models.{name}", others, f"{name}{SUFFIX}")
            lines += [x for x in found if not x.startswith(tuple(f"models.{name}.{key}:" for key in wrong))]
    if not is_usable(name):
        lines.append(f"models.{name}: is no usable name; allowed: letters, digits and '-'")
    if lines:
        out.faults += lines
        out.bad |= {name, f"{name}{SUFFIX}"}
        stand_in = {"role": "backbone", "source": {"kind": "local", "path": "."}, "licence": ""}
        return {name: stand_in, f"{name}{SUFFIX}": stand_in}
    if short.catalog is not None:
        out.shipped.add(name)
    return _entries(name, short, others, out)


def _entries(name: str, short: ShortEntry, others: Mapping[Any, Any], out: Expanded) -> dict[str, Any]:
    shipped = shipped_models()[short.catalog] if short.catalog is not None else None
    source, backbone = _sources(name, short, shipped)
    prompt = short.prompt or (shipped.prompt if shipped else "chat")
    role = shipped.role if shipped and "role" not in short.model_fields_set else short.role
    common = {"loading": short.loading.model_dump(exclude_unset=True)} if "loading" in short.model_fields_set else {}
    licence = short.licence or (shipped.licence if shipped else UNSTATED)
    text: dict[str, Any] = {
        "role": "backbone",
        "source": backbone or source,
        "prompt": short.backbone_prompt or (shipped.backbone_prompt if shipped else None) or prompt,
        **common,
        "licence": licence if backbone is None else UNSTATED,
        "note": f"language model of {name}",
    }
    if backbone is None:
        text |= {"same_weights_as": name, "note": f"the weights of {name}, on text alone"}
    named = short.backbone if _is_name(short.backbone) else _same(text, others)
    vlm = {
        "role": role,
        "backbone": named or f"{name}{SUFFIX}",
        "source": source,
        "prompt": prompt,
        **common,
        "licence": licence,
        "note": short.note or (shipped.note if shipped else ""),
    }
    if shipped is not None and "family" not in shipped.unsure:
        vlm["family"] = shipped.family
    if named is not None:
        return {name: vlm}
    out.keys[f"{name}{SUFFIX}"] = name
    if shipped is not None:
        out.shipped.add(f"{name}{SUFFIX}")
    return {f"{name}{SUFFIX}": text, name: vlm}


def _sources(
    name: str, short: ShortEntry, shipped: ShippedModel | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Of the VLM and of its backbone (None: the same weights)."""
    if shipped is not None and shipped.source is not None:  # a file that the pipeline trains bears the model's own name
        named = {k: v.replace("{name}", name) if isinstance(v, str) else v for k, v in shipped.source.items()}
        return named, shipped.backbone_source
    model = shipped.vlm if shipped else short.vlm
    llm = short.backbone or (shipped.backbone if shipped else None)
    own = shipped.revision if shipped else None
    of_llm = shipped.backbone_revision if shipped and short.backbone is None else None
    vlm = _source(model or "", short.revision or own)
    return vlm, None if llm is None or _is_name(llm) else _source(llm, short.backbone_revision or of_llm)


def _source(text: str, revision: str | None) -> dict[str, Any]:
    return (
        {"kind": "local", "path": text} if _is_folder(text) else {"kind": "hub", "id": text, "revision": revision or ""}
    )


def _is_folder(text: str) -> bool:
    return text.startswith((".", "/"))


def _is_name(text: str | None) -> bool:
    return text is not None and "/" not in text and not text.startswith(".")


def is_usable(name: str) -> bool:
    """Whether a model may have that name: it is a folder, a target and a key (DVC reads a dot in a key as a level)."""
    return name.replace("-", "").isalnum()


def _same(backbone: Mapping[str, Any], others: Mapping[Any, Any]) -> str | None:
    """The backbone among the other entries that has the same source and is asked and loaded alike."""
    for name, value in others.items():
        entry = cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else {}
        alike = all(entry.get(k) == backbone.get(k) for k in ("role", "source", "loading", "same_weights_as"))
        if alike and entry.get("prompt", "plain") == backbone["prompt"]:
            return str(name)
    return None


# --- faults -----------------------------------------------------------------------------------------------------------


def _faults(short: ShortEntry, at: str, others: Mapping[Any, Any], backbone_name: str) -> Iterator[str]:
    if (short.vlm is None) == (short.catalog is None):
        yield f"{at}: has {'both' if short.vlm else 'neither'} vlm and catalog; allowed: one of them"
        return
    shipped = None
    if short.catalog is not None:
        shipped = shipped_models().get(short.catalog)
        if shipped is None:
            near = difflib.get_close_matches(short.catalog, shipped_models(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{at}.catalog: is {short.catalog!r}; allowed: a name that `twohop models list` shows{hint}"
            return
        yield from _shipped_faults(short, shipped, at)
    if short.vlm is not None:
        yield from _place_faults(f"{at}.vlm", short.vlm, f"{at}.revision", short.revision)
    if short.backbone is not None and not _is_name(short.backbone):
        yield from _place_faults(f"{at}.backbone", short.backbone, f"{at}.backbone_revision", short.backbone_revision)
    elif short.backbone is not None:
        yield from _named_faults(short, at, others)
    elif short.backbone_revision is not None and not (shipped and shipped.backbone):
        yield f"{at}.backbone_revision: is {short.backbone_revision!r} without a backbone; allowed: nothing"
    if backbone_name in others and not _is_name(short.backbone):
        yield f"models.{backbone_name}: is the name of {at}'s backbone, too; allowed: another name"


def _place_faults(at: str, text: str, at_revision: str, revision: str | None) -> Iterator[str]:
    if _is_folder(text):
        if revision is not None:
            yield f"{at_revision}: is {revision!r}; allowed: nothing, {text} is a folder"
        return
    if not _ID.match(text):
        yield f"{at}: is {text!r}; allowed: owner/name on the hub, or a path that starts with . or /"
    else:
        yield from _revision_faults(at_revision, revision, text)


def _revision_faults(at: str, revision: str | None, model: str) -> Iterator[str]:
    if revision is None:
        yield f"{at}: missing; allowed: {_COMMIT} (`twohop models check {model}` prints today's)"
    elif not _REVISION.match(revision):
        yield f"{at}: is {revision!r}; allowed: {_COMMIT} (a branch like main moves)"


def _named_faults(short: ShortEntry, at: str, others: Mapping[Any, Any]) -> Iterator[str]:
    known = [str(n) for n, e in others.items() if isinstance(e, Mapping) and cast("Any", e).get("role") == "backbone"]
    if short.backbone not in known:
        yield (
            f"{at}.backbone: is {short.backbone!r}; allowed: owner/name on the hub, a path that starts with . or /, "
            f"or a model with role backbone ({', '.join(known)})"
        )
    if short.backbone_revision is not None:
        yield f"{at}.backbone_revision: is {short.backbone_revision!r}; allowed: nothing, the entry has its own"


def _shipped_faults(short: ShortEntry, shipped: ShippedModel, at: str) -> Iterator[str]:
    if shipped.source is not None:
        for key in ("revision", "backbone", "backbone_revision"):
            if getattr(short, key) is not None:
                yield f"{at}.{key}: is {getattr(short, key)!r}; allowed: nothing, {short.catalog} comes without a hub"
        return
    if shipped.remote_code:
        yield f"{at}.catalog: is {short.catalog!r}, which wants code from its repository to run; allowed: another model"
        return
    wanted = [("revision", short.revision, shipped.vlm, shipped.revision)]
    if short.backbone is None:
        wanted.append(("backbone_revision", short.backbone_revision, shipped.backbone, shipped.backbone_revision))
    for key, revision, model, known in wanted:
        if model is not None and revision is None and known is None:
            yield (
                f"{at}.{key}: missing; allowed: {_COMMIT}; the catalogue holds no verified commit of {model}, "
                f"`twohop models check {short.catalog}` prints it where there is a network"
            )
        elif model is not None and revision is not None:
            yield from _revision_faults(f"{at}.{key}", revision, model)
