"""Step fetch_images: every evaluated entity's pictures as PNG in one content-addressed archive, with a manifest.

1. each picture is rendered, or read from a user's file that is an input (or taken from an earlier, interrupted call),
   and decoded again in full;
2. a picture that cannot be made is a row of the manifest with its reason (promise F11);
3. the archive holds every distinct picture once, as `<sha256>.png`; the same pictures give the same bytes.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from twohop.config import FetchImages
from twohop.data import check_local, decode_picture, fetch_picture, write_pictures
from twohop.errors import DataError
from twohop.steps._step import Job, Step, Summary
from twohop.store import atomic_path, read_table, schemas, write_bytes, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="fetch_images",
    params=("fetch_images",),
    inputs=("entities", "picture_sources", "source_pictures"),
    outputs=("pictures", "manifest"),
    per_model=False,
)
PROGRESS_EVERY = 100
"""Pictures between two lines of progress in the log."""


@dataclass(frozen=True)
class Outcome:
    """What became of one picture: its bytes and size in pixels, or why there is none."""

    data: bytes = b""
    width: int = 0
    height: int = 0
    reason: str = ""


def run(job: Job) -> Summary:
    """Write the archive and the manifest.

    Raises:
        DataError: nothing to make, or more than `max_failed_share` of the pictures failed.
    """
    params = job.section(FetchImages)
    wanted = _wanted(job, params)
    check_local((row["locator"] for row in wanted), job.inputs["source_pictures"])
    outcomes: list[Outcome] = []
    for i, row in enumerate(wanted, 1):
        outcomes.append(make_picture(row["picture_id"], row["locator"], params, job.work))
        if i % PROGRESS_EVERY == 0 or i == len(wanted):
            LOG.info("%d of %d pictures, %d failed", i, len(wanted), sum(bool(o.reason) for o in outcomes))
    _check_failures(wanted, outcomes, params.max_failed_share)
    rows = [_manifest_row(row, outcome) for row, outcome in zip(wanted, outcomes, strict=True)]
    files = {r["file"]: o.data for r, o in zip(rows, outcomes, strict=True) if r["file"] is not None}
    with atomic_path(job.output("pictures")) as tmp:
        write_pictures(tmp, files)
    write_table(job.output("manifest"), pl.DataFrame(rows, schema=schemas.MANIFEST), schemas.MANIFEST)
    failed = sum(bool(o.reason) for o in outcomes)
    size = sum(map(len, files.values()))
    return {"done": len(rows) - failed, "failed": failed, "files": len(files), "bytes": size}


def make_picture(picture_id: str, locator: str, params: FetchImages, work: Path) -> Outcome:
    """One picture, from `work` when an earlier call finished it; a fault of the picture is an outcome, not an error."""
    kept = work / f"{hashlib.sha256(picture_id.encode()).hexdigest()}.png"
    try:
        return _outcome(kept.read_bytes(), picture_id)
    except (FileNotFoundError, DataError):  # not made yet, or the disk lost it
        pass
    try:
        outcome = _outcome(fetch_picture(locator, params.size_px, params.background), picture_id)
    except DataError as error:
        return Outcome(reason=error.what)
    write_bytes(kept, outcome.data)
    return outcome


def _outcome(data: bytes, picture_id: str) -> Outcome:
    picture = decode_picture(data, picture_id)
    return Outcome(data, picture.width, picture.height)


def _wanted(job: Job, params: FetchImages) -> list[dict[str, Any]]:
    entities = read_table(job.input("entities"), schemas.ENTITIES).filter("evaluated")
    sources = read_table(job.input("picture_sources"), schemas.PICTURE_SOURCES)
    kept = sources.filter(pl.col("style").is_in(params.styles)).join(entities, on="entity_id", how="semi")
    if kept.is_empty():
        styles = ", ".join(params.styles)
        where = str(job.input("picture_sources"))
        raise DataError(f"no picture of an evaluated entity in styles {styles}", where, "change fetch_images.styles")
    return kept.sort("picture_id").to_dicts()


def _check_failures(wanted: list[dict[str, Any]], outcomes: list[Outcome], max_share: float) -> None:
    failed = [f"{w['picture_id']}: {o.reason}" for w, o in zip(wanted, outcomes, strict=True) if o.reason]
    for line in failed:
        LOG.warning("no picture %s", line)
    if len(failed) > max_share * len(wanted):
        raise DataError(
            "\n".join([f"{len(failed)} of {len(wanted)} pictures failed, more than {max_share:.0%}:", *failed[:5]]),
            "fetch_images",
            "mend the source, or raise fetch_images.max_failed_share",
        )


def _manifest_row(source: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    if outcome.reason:
        empty = dict.fromkeys(("file", "sha256", "size_bytes", "width", "height"))
        return {**source, "status": "failed", "reason": outcome.reason, **empty}
    digest = hashlib.sha256(outcome.data).hexdigest()
    made = {"file": f"{digest}.png", "sha256": digest, "size_bytes": len(outcome.data)}
    return {**source, "status": "ok", "reason": "", **made, "width": outcome.width, "height": outcome.height}
