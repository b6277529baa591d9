"""Reading params.yaml: alike for every YAML reader, every fault on a line of its own (promises B1, B2, B6)."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from twohop.config._base import Section
from twohop.config._describe import Place, find_place
from twohop.config._params import Params
from twohop.config._short import Expanded, expand
from twohop.errors import ConfigError

_LONGEST_VALUE = 60
"""Characters of a wrong value that a message repeats."""


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read, check and freeze params.yaml.

    Raises:
        ConfigError: the file is absent, is not YAML, means different things in YAML 1.1 and 1.2, or breaks the schema;
            the message has one line per fault with path, value, what is allowed and the nearest known key.
    """
    return parse_params(_read(path), str(path))


def parse_params(tree: Any, where: str) -> Params:
    """Validate an already parsed tree (see `load_params`); short entries of the catalogue are spelled out first."""
    expanded = expand(tree, _lines)
    lines = expanded.faults
    try:
        params = Params.model_validate(expanded.tree)
    except ValidationError as error:
        lines = [*lines, *_as_given([line for e in error.errors() for line in _lines(Params, e)], expanded)]
    else:
        if not lines:
            return params.expanded_from(expanded.keys, expanded.shipped)
    raise ConfigError("\n".join(lines), where, "correct the lines above; docs/params.md documents every key")


def _as_given(lines: Iterable[str], expanded: Expanded) -> Iterator[str]:
    """Lines about entries that the file does not spell out, with the path that it has; none about stand-ins."""
    for line in lines:
        if any(line.startswith((f"models.{name}.", f"models.{name}:")) for name in expanded.bad):
            continue
        for name in sorted(expanded.shipped, key=len, reverse=True):
            owner = expanded.keys.get(name, name)
            line = line.replace(f"models.{name}.source.", f"models.{owner}.catalog: source.")
        yield line


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read it: {error}", str(path), "run in the project's top folder") from None
    try:
        old: Any = yaml.safe_load(text)
        new: Any = cast("Any", YAML(typ="safe", pure=True)).load(text)
    except (yaml.YAMLError, YAMLError) as error:
        raise ConfigError(f"not YAML: {error}", str(path), "mend the syntax at the place named above") from None
    faults = list(_differences(old, new, ""))
    if faults:
        raise ConfigError("\n".join(faults), str(path), "write the value so that YAML 1.1 and YAML 1.2 read it alike")
    return old


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    """Values that Snakemake's YAML 1.1 and DVC's YAML 1.2 read differently (promise B2)."""
    olds, news = cast("dict[Any, Any]", old), cast("dict[Any, Any]", new)
    kinds: set[type] = {type(old), type(new)}
    if kinds == {dict}:
        if list(map(repr, olds)) != list(map(repr, news)):
            odd = [str(k) for k in news if repr(k) not in set(map(repr, olds))]
            yield f"{at or 'top level'}: key(s) {', '.join(odd)} mean two things: put them in quotes"
            return
        for key in olds:
            yield from _differences(olds[key], news[key], f"{at}.{key}".lstrip("."))
    elif kinds == {list}:
        for i, pair in enumerate(zip(cast("list[Any]", old), cast("list[Any]", new), strict=False)):
            yield from _differences(*pair, f"{at}[{i}]")
    elif repr(old) != repr(new):  # also tells 1 from 1.0 and True, and takes nan for nan
        yield f"{at}: YAML 1.1 reads {old!r}, YAML 1.2 reads {new!r}: write {_spelling(old, new)}"


def _spelling(old: Any, new: Any) -> str:
    if isinstance(new, float):
        return repr(new) if "e" not in repr(new) else f"{new:.12f}".rstrip("0")
    if isinstance(old, bool):
        return f'{str(old).lower()}, or "{new}" for the word'
    return f'"{old if isinstance(old, str) else new}" for text, or the plain decimal number'


def _lines(root: type[Section], error: Any, at: tuple[str, ...] = ()) -> list[str]:
    """One line for each fault that a pydantic error reports: path, value, what is allowed."""
    place = find_place(root, error["loc"], at)
    path = _spelled(place.path)
    if error["type"] in ("extra_forbidden", "invalid_key") or error["loc"][-1:] == ("[key]",):
        parent = find_place(root, [x for x in error["loc"] if x != "[key]"][:-1], at)
        return [f"{path}: unknown key{_nearest(place.path[-1], parent.keys())}"]
    if error["type"] == "missing":
        return [f"{path}: missing; allowed: {place.allowed()}"]
    if error["type"] == "value_error":  # our own checks; some know a better path than pydantic does
        lines = str(error["ctx"]["error"]).splitlines()
        return [x if not place.path or x.startswith(path) else f"{path}: {x}" for x in lines]
    if error["type"].startswith("union_tag"):
        given = error["ctx"].get("tag")
        if not isinstance(error.get("input"), dict):
            return [f"{path}: is {_shown(error.get('input'))}; allowed: {place.allowed()}"]
        return [f"{path}.kind: is {_shown(given)}; allowed: {place.allowed()}"]
    shown = _shown(error.get("input"))
    return [f"{path}: is {shown}; allowed: {place.allowed()}{_nearest_value(error.get('input'), place)}"]


def _spelled(path: Sequence[str]) -> str:
    return ".".join(path).replace(".[", "[") or "top level"


def _shown(value: Any) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _nearest(name: str, keys: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, keys, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint} (allowed: {', '.join(keys)})" if keys else hint


def _nearest_value(value: Any, place: Place) -> str:
    """The choice that a misspelt word probably meant."""
    choices = get_args(place.hint) if get_origin(place.hint) is Literal else ()
    near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
    return f"; did you mean {near[0]}?" if near else ""
