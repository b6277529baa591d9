"""Reading params.yaml: the same values for every YAML reader, every fault on a line of its own (promises B1, B2, B6)."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from twohop.config._params import Params
from twohop.errors import ConfigError


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read, check and freeze params.yaml.

    Raises:
        ConfigError: the file is absent, is not YAML, means different things in YAML 1.1 and 1.2, or breaks the schema;
            the message has one line per fault with path, value, what is allowed and the nearest known key.
    """
    return parse_params(_read(path), str(path))


def parse_params(tree: Any, where: str) -> Params:
    """Validate an already parsed tree (see `load_params`)."""
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        lines = [_line(e, tree) for e in error.errors()]
        raise ConfigError("\n".join(lines), where, "correct the lines above; docs/params.md documents every key") from None


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read it: {error}", str(path), "run in the project's top folder") from None
    try:
        old = yaml.safe_load(text)
        new = YAML(typ="safe", pure=True).load(text)
    except (yaml.YAMLError, YAMLError) as error:
        raise ConfigError(f"not YAML: {error}", str(path), "mend the syntax at the place named above") from None
    faults = list(_differences(old, new, ""))
    if faults:
        raise ConfigError("\n".join(faults), str(path), "write the value so that YAML 1.1 and YAML 1.2 read it alike")
    return old


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    """Values that Snakemake's YAML 1.1 and DVC's YAML 1.2 read differently (promise B2)."""
    if isinstance(old, dict) and isinstance(new, dict):
        olds, news = cast("dict[Any, Any]", old), cast("dict[Any, Any]", new)
        if list(map(repr, olds)) != list(map(repr, news)):
            odd = [str(k) for k in news if repr(k) not in set(map(repr, olds))]
            yield f'{at or "top level"}: key(s) {", ".join(odd)} mean two things: put them in quotes'
            return
        for key in olds:
            yield from _differences(olds[key], news[key], f"{at}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list):
        for i, (x, y) in enumerate(zip(cast("list[Any]", old), cast("list[Any]", new), strict=False)):
            yield from _differences(x, y, f"{at}[{i}]")
    elif type(old) is not type(new) or old != new:
        yield f"{at}: YAML 1.1 reads {old!r}, YAML 1.2 reads {new!r}: write {_spelling(old, new)}"


def _spelling(old: Any, new: Any) -> str:
    if isinstance(new, float):
        return repr(new) if "e" not in repr(new) else f"{new:.12f}".rstrip("0")
    if isinstance(old, bool):
        return f'{str(old).lower()}, or "{new}" for the word'
    return f'"{new}" for text, or the plain decimal number'


def _line(error: Any, tree: Any) -> str:
    loc = [str(x) for x in error["loc"] if str(x) not in ("package", "assembled", "random", "local")]
    path = ".".join(loc) or "relations between keys"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], _siblings(loc[:-1]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{path}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{path}: missing key"
    got = error.get("input")
    shown = "" if isinstance(got, (BaseModel, dict)) else f" (is {got!r})"
    return f"{path}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _siblings(loc: list[str]) -> list[str]:
    model: Any = Params
    for name in loc:
        if isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields:
            model = model.model_fields[name].annotation
        elif model == Params.model_fields["models"].annotation:
            model = model.__args__[1]
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return list(Params.model_fields)
