"""Step run_benchmark: what a model answers from the name, from the picture, from a blank picture, and whether it
knows the picture (study, section 2).

1. condition `text`: every question with the name; the only one of a backbone;
2. `image`: the same questions with the picture; `blank`: with an empty canvas, asked once per wording (the grounding
   gate);
3. recognition: free naming, and the name with the largest log-probability among all names of the entity table. The
   held-out art source is shown under every recognition prompt, the others under the first.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
from PIL import Image

from twohop.analysis import accuracy, grade, recognised
from twohop.config import RunBenchmark
from twohop.data import open_pictures
from twohop.models import Batch, Model, Picture, Prompt, open_model
from twohop.steps._asking import KeptPictures, ask_in_parts, split_prompt
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_table, schemas, write_json, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="run_benchmark",
    params=("run_benchmark", "fetch_images.background", "models.{model}"),
    inputs=("entities", "questions", "manifest", "pictures", "card"),
    outputs=("answers", "recognition", "metrics"),
)


@dataclass(frozen=True)
class Bench:
    """What every part of the benchmark needs."""

    job: Job
    params: RunBenchmark
    model: Model
    entities: pl.DataFrame
    questions: pl.DataFrame
    manifest: pl.DataFrame
    pictures: KeptPictures

    def answers(self, name: str, prompts: list[Prompt]) -> list[str]:
        """Greedy answers."""
        write: Callable[[Batch], list[str]] = lambda batch: self.model.generate(batch, self.params.max_new_tokens)  # noqa: E731
        return ask_in_parts(self.model, self.job.work, name, prompts, self.params.batch, write)

    def names(self, part: str, prompts: list[Prompt], names: list[str]) -> tuple[list[str], list[str]]:
        """What is written after each prompt, and the most probable name."""

        def both(batch: Batch) -> list[list[str]]:
            written, best = self.model.name_answers(batch, self.params.max_new_tokens, names)
            return [[text, names[i]] for text, i in zip(written, best, strict=True)]

        found = ask_in_parts(self.model, self.job.work, part, prompts, self.params.batch, both)
        return [text for text, _ in found], [name for _, name in found]


def run(job: Job) -> Summary:
    """Ask, grade, write answers, recognition and metrics."""
    sees = job.entry().role != "backbone"
    with open_pictures(job.input("pictures")) as picture:
        bench = _open(job, picture)
        answers = pl.concat([_text(bench), *([_image(bench), _blank(bench)] if sees else [])])
        recognition = _recognition(bench) if sees else pl.DataFrame(schema=schemas.RECOGNITION)
    write_table(job.output("answers"), answers, schemas.ANSWERS)
    write_table(job.output("recognition"), recognition, schemas.RECOGNITION)
    metrics = _metrics(bench, answers, recognition)
    write_json(job.output("metrics"), metrics)
    return {"done": answers.height, "failed": 0, "pictures_named": recognition.height} | _headline(metrics)


def _open(job: Job, picture: Callable[[str], Image.Image]) -> Bench:
    model, manifest = open_model(job.input("card")), read_table(job.input("manifest"), schemas.MANIFEST)
    return Bench(
        job,
        job.section(RunBenchmark),
        model,
        read_table(job.input("entities"), schemas.ENTITIES),
        read_table(job.input("questions"), schemas.QUESTIONS),
        manifest,
        KeptPictures(model, picture, manifest),
    )


def _text(bench: Bench) -> pl.DataFrame:
    rows = list(bench.questions.iter_rows(named=True))
    prompts = [Prompt(q["before"], q["name"], q["after"]) for q in rows]
    shown = [q["before"] + q["name"] + q["after"] for q in rows]
    return _graded(bench, "text", shown, bench.answers("text", prompts))


def _image(bench: Bench) -> pl.DataFrame:
    rows = list(bench.questions.iter_rows(named=True))
    pictures = bench.pictures.take(bench.questions["picture_id"].to_list())
    prompts = [Prompt(q["before"], None, q["after"], p) for q, p in zip(rows, pictures, strict=True)]
    shown = [f"{q['before']}<{q['picture_id']}>{q['after']}" for q in rows]
    return _graded(bench, "image", shown, bench.answers("image", prompts))


def _blank(bench: Bench) -> pl.DataFrame:
    """All entities share one prompt per wording, so each wording is asked once and the answer copied."""
    picture = _blank_picture(bench)
    wordings = bench.questions.select("before", "after").unique(maintain_order=True).rows()
    said = bench.answers("blank", [Prompt(before, None, after, picture) for before, after in wordings])
    answer = dict(zip(wordings, said, strict=True))
    asked = bench.questions.select("before", "after").rows()
    return _graded(bench, "blank", [f"{b}<blank>{a}" for b, a in asked], [answer[w] for w in asked])


def _blank_picture(bench: Bench) -> Picture:
    """An empty canvas of the size and background of the pictures."""
    size = bench.manifest.filter(pl.col("status") == "ok").select("width", "height").row(0)
    red, green, blue = bench.job.params["fetch_images.background"]
    return bench.model.encode_pictures([Image.new("RGB", size, (red, green, blue))])[0]


def _graded(bench: Bench, condition: str, prompts: list[str], answers: list[str]) -> pl.DataFrame:
    matched = [
        grade(a, aliases) for a, aliases in zip(answers, bench.questions["answer_aliases"].to_list(), strict=True)
    ]
    return bench.questions.select(
        "question_id",
        "entity_id",
        "relation",
        condition=pl.lit(condition),
        prompt=pl.Series(prompts, dtype=pl.String),
        answer_text=pl.Series(answers, dtype=pl.String),
        correct=pl.Series([m is not None for m in matched], dtype=pl.Boolean),
        matched_alias=pl.Series(matched, dtype=pl.String),
    )


def _recognition(bench: Bench) -> pl.DataFrame:
    held_out = _held_out_sources(bench)
    parts = [
        _recognise(bench, style, prompt_id)
        for style, source in bench.manifest.select("style", "art_source").unique(maintain_order=True).iter_rows()
        for prompt_id in range(len(bench.params.recognition_prompts) if source in held_out else 1)
    ]
    return pl.concat(parts)


def _recognise(bench: Bench, style: str, prompt_id: int) -> pl.DataFrame:
    """One style under one prompt: free naming, and the best of all names."""
    shown = bench.manifest.filter((pl.col("style") == style) & (pl.col("status") == "ok"))
    before, after = split_prompt(bench.params.recognition_prompts[prompt_id])
    prompts = [Prompt(before, None, after, p) for p in bench.pictures.take(shown["picture_id"].to_list())]
    answers, ranked = bench.names(f"recognition-{style}-{prompt_id}", prompts, bench.entities["name"].to_list())
    matched = _grade_names(bench, shown["entity_id"].to_list(), answers)
    names = dict(bench.entities.select("entity_id", "name").iter_rows())
    true_names = [names[e] for e in shown["entity_id"]]
    return shown.select(
        "picture_id",
        "entity_id",
        "art_source",
        "style",
        prompt_id=pl.lit(prompt_id, dtype=pl.Int64),
        answer_text=pl.Series(answers, dtype=pl.String),
        correct=pl.Series([m is not None for m in matched], dtype=pl.Boolean),
        matched_alias=pl.Series(matched, dtype=pl.String),
        ranked_name=pl.Series(ranked, dtype=pl.String),
        ranked_correct=pl.Series([r == t for r, t in zip(ranked, true_names, strict=True)], dtype=pl.Boolean),
    )


def _grade_names(bench: Bench, entity_ids: list[str], answers: list[str]) -> list[str | None]:
    """Names are graded against those of all other entities, so that "Equatorial Guinea" does not name Guinea."""
    spellings = {e: [n, *a] for e, n, a in bench.entities.select("entity_id", "name", "aliases").iter_rows()}
    rivals = {e: [s for other, texts in spellings.items() if other != e for s in texts] for e in set(entity_ids)}
    return [grade(a, spellings[e], rivals[e]) for e, a in zip(entity_ids, answers, strict=True)]


def _held_out_sources(bench: Bench) -> set[str]:
    """Art sources of the pictures that the questions show."""
    asked = bench.manifest.filter(pl.col("picture_id").is_in(bench.questions["picture_id"].to_list()))
    return set(asked["art_source"])


def _metrics(bench: Bench, answers: pl.DataFrame, recognition: pl.DataFrame) -> dict[str, Any]:
    conditions = answers["condition"].unique(maintain_order=True).to_list()
    metrics: dict[str, Any] = {
        "n_questions": bench.questions.height,
        "n_entities": bench.questions["entity_id"].n_unique(),
        "accuracy": {c: _by_relation(bench, answers.filter(pl.col("condition") == c)) for c in conditions},
    }
    if recognition.is_empty():
        return metrics
    return metrics | {
        "accuracy_image_gated": _gated(bench, answers, recognition),
        "grounded": _interval(bench, answers.filter(condition="blank").with_columns(~pl.col("correct"))),
        "recognition": _recognition_metrics(bench, recognition),
    }


def _by_relation(bench: Bench, rows: pl.DataFrame) -> dict[str, Any]:
    relations = rows["relation"].unique().sort().to_list()
    each = {r: _interval(bench, rows.filter(pl.col("relation") == r)) for r in relations}
    return {"all": _interval(bench, rows)} | each


def _gated(bench: Bench, answers: pl.DataFrame, recognition: pl.DataFrame) -> dict[str, Any]:
    """Accuracy from the picture on the questions that pass a gate (study, section 2)."""
    image = answers.filter(pl.col("condition") == "image")
    free = recognised(recognition, bench.questions, "free")
    ranked = recognised(recognition, bench.questions, "ranked").rename({"recognised": "ranked"})
    image = image.join(free, on="question_id").join(ranked, on="question_id").join(_grounded(answers), on="question_id")
    gates = {"recognised": pl.col("recognised"), "ranked": pl.col("ranked"), "grounded": pl.col("grounded")}
    gates["recognised+grounded"] = gates["recognised"] & gates["grounded"]
    return {name: _interval(bench, image.filter(gate)) for name, gate in gates.items()}


def _grounded(answers: pl.DataFrame) -> pl.DataFrame:
    blank = answers.filter(pl.col("condition") == "blank")
    return blank.select("question_id", grounded=~pl.col("correct"))


def _recognition_metrics(bench: Bench, recognition: pl.DataFrame) -> dict[str, Any]:
    """Per style and prompt: share named freely, share ranked first."""
    found: dict[str, Any] = {}
    for (style, prompt), rows in recognition.group_by("style", "prompt_id", maintain_order=True):
        free, ranked = rows.select("entity_id", "correct"), rows.select("entity_id", correct="ranked_correct")
        found.setdefault(str(style), {})[f"prompt_{prompt}"] = {
            "free": _interval(bench, free),
            "ranked": _interval(bench, ranked),
        }
    return found


def _interval(bench: Bench, rows: pl.DataFrame) -> dict[str, Any]:
    interval = accuracy(rows, bench.params.n_boot, bench.params.seed)
    return {**interval.record(), "n": rows.height}


def _headline(metrics: dict[str, Any]) -> dict[str, float]:
    return {f"accuracy_{c}": round(rows["all"]["value"], 4) for c, rows in metrics["accuracy"].items()}
