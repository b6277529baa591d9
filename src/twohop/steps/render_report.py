"""`report.html`: one self-contained page: answer, figures, tables, model cards, graded answers, provenance."""

import polars as pl

from twohop.config import RenderReport
from twohop.data import open_pictures
from twohop.figures import CAPTIONS, Study, load_study, restore_order
from twohop.report import Thumbnail, read_run, render, thumbnail
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_json, read_table, schemas, write_bytes

STEP = Step(
    name="render_report",
    params=("render_report", "models"),
    inputs=(
        "entities",
        "cards",
        "questions",
        "answers",
        "recognition",
        "scores",
        "question_scores",
        "validation",
        "outcomes",
        "curves",
        "predictions",
        "resolution",
        "readings",
        "depths",
        "recovered",
        "funnel",
        "pictures",
        "manifest",
        "summary",
        "figures",
        "lineages",
    ),
    outputs=("report",),
    per_model=False,
)


def run(job: Job) -> Summary:
    """Write the page.

    Raises:
        ArtifactError: a table, a figure, the summary or a lineage record is unreadable.
        DataError: a picture is broken.
    """
    settings = job.section(RenderReport)
    study = load_study(job.inputs, job.params["models"])
    svgs = {path.stem: path for path in job.inputs["figures"] if path.suffix == ".svg"}
    page = render(
        study,
        restore_order(read_json(job.input("summary"))),
        {name: svgs[name] for name in CAPTIONS},
        _thumbnails(job, study),
        [read_run(path) for path in job.inputs["lineages"]],
        read_table(job.input("funnel"), schemas.FUNNEL),
        _shown(job, study).join(study.entities.select("entity_id", "name"), on="entity_id").sort("name", "picture_id"),
        settings.title,
        settings.max_answers,
    )
    data = page.encode()
    write_bytes(job.output("report"), data)
    return {"bytes": len(data), "runs": len(job.inputs["lineages"]), "figures": len(CAPTIONS)}


def _shown(job: Job, study: Study) -> pl.DataFrame:
    """The manifest's rows of the pictures that questions show."""
    asked = pl.concat([q.select("picture_id") for q in study.questions.values()]).unique()
    manifest = read_table(job.input("manifest"), schemas.MANIFEST).filter(pl.col("status") == "ok")
    return manifest.join(asked, on="picture_id", how="semi").sort("picture_id")


def _thumbnails(job: Job, study: Study) -> dict[str, Thumbnail]:
    """Thumbnails of the pictures that questions show."""
    shown = _shown(job, study).select("picture_id", "file")
    with open_pictures(job.input("pictures")) as picture:
        return {name: thumbnail(i, picture(file)) for i, (name, file) in enumerate(shown.iter_rows())}
