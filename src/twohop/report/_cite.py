"""Numbers on the page carry the id by which `twohop lineage view` finds them: `<run>/summary.json#<JSON pointer>`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from twohop.figures import END, MIDDLE, START, cited

SHOWN = 8
"""Characters of a run's id on the page."""
_MARKED = re.compile(f"{START}([^{MIDDLE}]*) ([^ {MIDDLE}]*){MIDDLE}([^{END}]*){END}")


class Citer:
    """The summary with numbers that know their place, and what turns such a number into HTML or plain text."""

    def __init__(self, summary: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
        """Without the record of the run that made the summary, numbers are shown without an id."""
        outputs = {o["name"]: r["run_id"] for r in runs if r["step"] == "plot_figures" for o in r["outputs"]}
        self._run: str | None = outputs.get("summary")
        self.summary: Mapping[str, Any] = summary if self._run is None else cited(summary)

    def html(self, text: object) -> Markup:
        """Escaped text, each cited number as a `data` element."""
        return Markup(_MARKED.sub(self._element, str(escape(str(text)))))

    def plain(self, text: object) -> str:
        """The text alone, for attributes."""
        return _MARKED.sub(r"\3", str(text))

    def _element(self, found: re.Match[str]) -> str:
        pointer, value, text = found.groups()
        record = f"{(self._run or '')[:SHOWN]}/summary.json#{pointer}"
        return f'<data value="{value}" data-record="{record}">{text}</data>'
