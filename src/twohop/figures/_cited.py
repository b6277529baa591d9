"""Numbers that know where they stand in summary.json, so that a sentence made from them can cite each one.

A cited number is written as `MARK_id pointer value MARK_text text MARK_end` in characters of Unicode's private use
area; `twohop.report` turns that into HTML. Functions that make sentences need not know: formatting a number is enough.
"""

from collections.abc import Mapping
from typing import Any, SupportsFloat, cast

START, MIDDLE, END = "\ue000", "\ue001", "\ue002"
"""Around a pointer with its value, and the text that shows it."""


class CitedFloat(float):
    """A number with its JSON pointer; scaling it (to percent) keeps the pointer and the unscaled value."""

    pointer: str
    exact: float

    def __new__(cls, value: float, pointer: str, exact: float | None = None) -> "CitedFloat":
        number = super().__new__(cls, value)
        number.pointer, number.exact = pointer, value if exact is None else exact
        return number

    def __mul__(self, factor: float) -> "CitedFloat":
        return CitedFloat(float(self) * factor, self.pointer, self.exact)

    __rmul__ = __mul__

    def __format__(self, spec: str) -> str:
        return cite(self, format(float(self), spec))

    def __str__(self) -> str:
        return format(self, "")


class CitedInt(int):
    """A count with its JSON pointer."""

    pointer: str
    exact: int

    def __new__(cls, value: int, pointer: str) -> "CitedInt":
        number = super().__new__(cls, value)
        number.pointer, number.exact = pointer, value
        return number

    def __format__(self, spec: str) -> str:
        return cite(self, format(int(self), spec))

    def __str__(self) -> str:
        return format(self, "")


def cite(number: SupportsFloat, text: str) -> str:
    """A text that stands for a number; as it is when the number knows no place."""
    if isinstance(number, (CitedFloat, CitedInt)):
        return f"{START}{number.pointer} {number.exact!r}{MIDDLE}{text}{END}"
    return text


def cited(value: Any, pointer: str = "") -> Any:
    """A JSON value whose numbers know their pointers (RFC 6901)."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: cited(v, f"{pointer}/{k.replace('~', '~0').replace('/', '~1')}") for k, v in items}
    if isinstance(value, list):
        return [cited(v, f"{pointer}/{i}") for i, v in enumerate(cast("list[Any]", value))]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return CitedInt(value, pointer) if isinstance(value, int) else CitedFloat(value, pointer)
