"""What a place in params.yaml may hold, in words; read off the typed models, for messages and for docs/params.md."""

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import annotated_types as at
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Hint: TypeAlias = Any
"""A type as an annotation spells it (class, union, `Literal`, `Annotated`); typing has no name for that."""

_WORDS: Mapping[Hint, str] = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class Place:
    """One place in the tree: its type, the constraints on it, and its path as a person writes it."""

    hint: Hint
    path: tuple[str, ...] = ()
    limits: tuple[Any, ...] = ()

    def allowed(self) -> str:
        """What may stand here, e.g. `whole number, 32 to 1024`."""
        return _words(self.hint, self.limits)

    def keys(self) -> list[str]:
        """Keys that a mapping here may have; empty when any key goes or this is no mapping."""
        hint = _plain(self.hint)[0]
        if _is_section(hint):
            return list(hint.model_fields)
        if get_origin(hint) is dict:
            return [str(x) for x in get_args(_plain(get_args(hint)[0])[0])]
        return []


def find_place(root: type[BaseModel], loc: Sequence[str | int], at: tuple[str, ...] = ()) -> Place:
    """Follow a pydantic error location from a section that stands `at` a path; a union's tag is followed but left out
    of the path.

    Unknown names lead to a place of type `object`, whose path is still right.
    """
    place = Place(root, at)
    for name in loc:
        place = _member(place, name) if name != "[key]" else place
    return place


def _member(place: Place, name: str | int) -> Place:
    hint = _plain(place.hint)[0]
    path = (*place.path, f"[{name}]" if get_origin(hint) is list else str(name))
    if tagged := _tagged(hint, name):
        return Place(tagged, place.path)
    if _is_section(hint) and name in hint.model_fields:
        field: FieldInfo = hint.model_fields[name]
        return Place(field.annotation, path, tuple(field.metadata))
    if get_origin(hint) in (list, dict):
        return Place(get_args(hint)[-1], path)
    return Place(object, path)


def _tagged(hint: Hint, name: str | int) -> Hint | None:
    """The member of a discriminated union whose `kind` is `name`."""
    for member in (_plain(x)[0] for x in get_args(hint) if _is_union(hint)):
        if _is_section(member) and name in get_args(member.model_fields["kind"].annotation):
            return member
    return None


def _words(hint: Hint, limits: Iterable[Any]) -> str:
    hint, inner = _plain(hint)
    text = _type_words(hint)
    bounds = _bounds([*inner, *limits])
    return f"{text}, {bounds}" if bounds else text


def _type_words(hint: Hint) -> str:
    args, origin = get_args(hint), get_origin(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Literal:
        return repr(args[0]) if len(args) == 1 else "one of " + ", ".join(map(str, args))
    if origin is list:
        return f"list, each {_words(args[0], ())}"
    if origin is dict:
        return f"section with a name of your choice for each {_name(args[1])}" if _is_section(args[1]) else _dict(args)
    if _is_union(hint):
        return _union(args)
    return f"section with keys {', '.join(hint.model_fields)}" if _is_section(hint) else "what docs/params.md says"


def _union(args: tuple[Hint, ...]) -> str:
    plain = [_plain(a)[0] for a in args]
    tagged = [a for a in plain if _is_section(a) and "kind" in a.model_fields]
    if tagged:
        kinds = [get_args(a.model_fields["kind"].annotation)[0] for a in tagged]
        others = [_words(a, ()) for a in plain if a not in tagged]
        return " or ".join([*others, f"section with `kind`, one of {', '.join(kinds)}"])
    words = [_words(a, ()) for a in args if a is not types.NoneType]
    return " or ".join([*words, "null"] if types.NoneType in args else words)


def _dict(args: tuple[Hint, ...]) -> str:
    return f"section; key: {_words(args[0], ())}; value: {_words(args[1], ())}"


def _bounds(limits: list[Any]) -> str:
    low = [f"more than {x.gt}" for x in limits if isinstance(x, at.Gt)]
    low += [f"at least {x.ge}" for x in limits if isinstance(x, at.Ge)]
    high = [f"less than {x.lt}" for x in limits if isinstance(x, at.Lt)]
    high += [f"at most {x.le}" for x in limits if isinstance(x, at.Le)]
    high += [f"a multiple of {x.multiple_of}" for x in limits if isinstance(x, at.MultipleOf)]
    sizes = [x.min_length for x in limits if isinstance(x, at.MinLen)]
    tops = [x.max_length for x in limits if isinstance(x, at.MaxLen)]
    if sizes and sizes == tops:
        return f"exactly {sizes[0]} of them"
    high += [f"at most {n} of them" for n in tops]
    return " and ".join([*low, *[f"at least {n} of them" for n in sizes], *high])


def _plain(hint: Hint) -> tuple[Hint, list[Any]]:
    """A type without its `Annotated`, and what that carried."""
    if get_origin(hint) is not Annotated:
        return hint, []
    inner, *extra = get_args(hint)
    found: list[Any] = []
    for item in extra:
        found += item.metadata if isinstance(item, FieldInfo) else [item]
    return inner, found


def _is_union(hint: Hint) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _is_section(hint: Hint) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)


def _name(section: type[BaseModel]) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in section.__name__).strip()
