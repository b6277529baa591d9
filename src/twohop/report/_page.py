"""One self-contained HTML page: everything inline, nothing fetched, everything escaped."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, cast

import jinja2
import polars as pl
from markupsafe import Markup
from PIL import Image

from twohop.errors import ArtifactError
from twohop.figures import CAPTIONS, Study
from twohop.report._cite import SHOWN, Citer
from twohop.report._findings import find
from twohop.report._tables import answers, funnel_table, limits, tables
from twohop.store import read_json

Record = Mapping[str, Any]
THUMBNAIL = 48
"""Side in pixels of a picture in the table of answers."""
_TITLES = {
    "benchmark": "Recall and recognition",
    "attribution": "Where the answer is made",
    "validation": "Attribution against true patching",
    "patching": "Repair by patching, and what it breaks",
    "layer_sweep": "How many layers the patch needs",
    "probes": "When the entity can be read off",
    "resolution": "By which layer the entity is resolved",
    "recovery": "Repair by prompting",
}
_SECTIONS = {
    "answer": "The answer",
    "figures": "Figures",
    "tables": "Tables",
    "models": "Model cards",
    "questions": "Questions and answers",
    "gallery": "Pictures and credits",
    "limits": "Limits",
    "provenance": "Provenance",
}
_RUN_KEYS = {
    "run_id",
    "step",
    "model",
    "commit",
    "dirty",
    "params",
    "seconds",
    "started",
    "summary",
    "inputs",
    "outputs",
}


@dataclass(frozen=True)
class Thumbnail:
    """A small picture: CSS class and base64 PNG."""

    key: str
    data: str


def render(
    study: Study,
    summary: Record,
    figures: Mapping[str, Path],
    thumbnails: Mapping[str, Thumbnail],
    runs: Sequence[Record],
    funnel: pl.DataFrame,
    gallery: pl.DataFrame,
    title: str,
    max_answers: int,
) -> str:
    """The page.

    Args:
        study: the tables, for answers and cards.
        summary: `summary.json`; its numbers are cited when the record of the run that made it is among `runs`.
        figures: figure name to its SVG file.
        thumbnails: picture id to its thumbnail; pictures without one are left out.
        runs: lineage records.
        funnel: how many entities each filter left out (`schemas.FUNNEL`).
        gallery: picture_id, name, licence, author and source_page of the pictures that are shown.
        title: heading.
        max_answers: how many graded answers are listed.
    """
    listed = list(answers(study))
    cite = Citer(summary, runs)
    summary = cite.summary
    return _template(cite).render(
        title=title,
        style=_asset("style.css"),
        script=_asset("script.js"),
        summary=summary,
        models=", ".join(f"{n} ({e.role})" for n, e in study.models.items()),
        sections=list(_SECTIONS.items()),
        findings=find(summary),
        figures=[_figure(name, summary, figures[name]) for name in CAPTIONS],
        tables=[*tables(summary), funnel_table(funnel)],
        answer_ids=_answer_ids(runs),
        cards=[_card(name, card) for name, card in study.cards.items()],
        answers=list(islice(listed, max_answers)),
        n_answers=len(listed),
        answered=list(study.answers),
        thumbnails=thumbnails,
        gallery=gallery.to_dicts(),
        limits=limits(summary),
        runs=sorted(runs, key=lambda r: (r["started"], r["step"], r["model"] or "")),
        run_ids={r["run_id"] for r in runs},
    )


def thumbnail(index: int, picture: Image.Image) -> Thumbnail:
    """Shrink a picture for the table of answers."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.quantize(64).save(buffer, format="PNG", optimize=True)
    return Thumbnail(f"p{index}", _base64(buffer.getvalue()))


def read_run(path: Path) -> Record:
    """A lineage record as plain values.

    Raises:
        ArtifactError: it is no such record.
    """
    record: Any = read_json(path)
    missing = [k for k in _RUN_KEYS if not isinstance(record, dict) or k not in record]
    if missing:
        raise ArtifactError(f"not a lineage record: lacks {', '.join(missing)}", str(path), "make the step again")
    return cast("Record", record)


def _answer_ids(runs: Sequence[Record]) -> dict[str, str]:
    """Model: id of its table of answers."""
    made = [r for r in runs if r["step"] == "run_benchmark"]
    return {r["model"]: f"{r['run_id'][:SHOWN]}/answers.parquet" for r in made}


def _template(cite: Citer) -> jinja2.Template:
    env = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    env.filters |= {"cited": cite.html, "plain": cite.plain}
    return env.from_string((files("twohop.report") / "template.html").read_text(encoding="utf-8"))


def _asset(name: str) -> Markup:
    return Markup((files("twohop.report") / name).read_text(encoding="utf-8"))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _figure(name: str, summary: Record, svg: Path) -> dict[str, str]:
    try:
        data = svg.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the figure: {error}", str(svg), "make it again: plot_figures") from None
    return {"name": name, "title": _TITLES[name], "caption": CAPTIONS[name](summary), "svg": _base64(data)}


def _card(name: str, card: Record) -> dict[str, Any]:
    """Single facts of a card first, then its files; nested sections are spelled out."""
    facts = [
        (k.replace("_", " "), _fact(v)) for k, v in card.items() if k not in ("files", "name") and v not in (None, "")
    ]
    return {
        "name": name,
        "facts": facts,
        "files": [(f, f"{r['bytes']:,} bytes, sha256 {r['sha256']}") for f, r in sorted(card.get("files", {}).items())],
    }


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return "; ".join(f"{k}: {_fact(v)}" for k, v in items.items() if v not in (None, ""))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
