"""Step recover_recall: does saying the name first bring the fact back? (study, section 6)

Strategies, on the questions and pictures of the benchmark:
- `direct`: the benchmark's own answers from the picture;
- `name_then_answer`: the model writes the name after the picture, then goes on in the same text, the picture still
  before it, to the question;
- `two_turns`: the model's own name is put into the named prompt; the picture is gone;
- `oracle_name`: as `name_then_answer`, but the true name is given.
Answers have the benchmark's length, so that strategies differ in the prompt only.
"""

import logging
from dataclasses import dataclass
from typing import Any

import polars as pl

from twohop.analysis import accuracy, closed_share, continue_with, cut_name, grade
from twohop.config import RecoverRecall
from twohop.data import open_pictures
from twohop.errors import ConfigError
from twohop.models import Model, Picture, Prompt, open_model
from twohop.steps._asking import ask_in_parts, encode_by_id, split_prompt
from twohop.steps._step import Job, Step, Summary
from twohop.store import read_table, schemas, write_json, write_table

LOG = logging.getLogger(__name__)
STEP = Step(
    name="recover_recall",
    params=("recover_recall", "run_benchmark.max_new_tokens", "models.{model}"),
    inputs=("questions", "entities", "manifest", "pictures", "card", "answers", "backbone_answers"),
    outputs=("recovered", "metrics"),
)
STRATEGIES = ("direct", "name_then_answer", "two_turns", "oracle_name")
Question = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """A name that stands in a prompt, and whether it is right."""

    name: str
    correct: bool


@dataclass(frozen=True)
class Setting:
    """What every strategy needs."""

    job: Job
    params: RecoverRecall
    model: Model
    questions: pl.DataFrame
    entities: pl.DataFrame
    pictures: dict[str, Picture]

    def ask(self, part: str, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        """Greedy answers, kept in the work folder."""
        size, work = self.params.batch, self.job.work
        return ask_in_parts(self.model, work, part, prompts, size, lambda b: self.model.generate(b, max_new_tokens))


def run(job: Job) -> Summary:
    """Write the names, ask again, grade, compare."""
    if job.entry().role != "vlm":
        raise ConfigError(f"{job.model} is no vlm", "command line", "recover_recall is for models of role vlm")
    setting = _open(job)
    written, true_names = _write_names(setting), _true_names(setting)
    parts = [
        _direct(read_table(job.input("answers"), schemas.ANSWERS)),
        _ask_shown(setting, "name_then_answer", written),
        _ask_named(setting, "two_turns", written),
        _ask_shown(setting, "oracle_name", true_names),
    ]
    recovered = pl.concat(parts)
    write_table(job.output("recovered"), recovered, schemas.RECOVERED)
    backbone = read_table(job.input("backbone_answers"), schemas.ANSWERS).filter(condition="text")
    metrics = _metrics(setting.params, recovered, backbone)
    write_json(job.output("metrics"), metrics)
    return {"done": recovered.height, "failed": 0} | _headline(metrics)


def _open(job: Job) -> Setting:
    model = open_model(job.input("card"))
    questions = read_table(job.input("questions"), schemas.QUESTIONS)
    manifest = read_table(job.input("manifest"), schemas.MANIFEST)
    with open_pictures(job.input("pictures")) as picture:
        pictures = encode_by_id(model, picture, manifest, questions["picture_id"])
    entities = read_table(job.input("entities"), schemas.ENTITIES)
    return Setting(job, job.section(RecoverRecall), model, questions, entities, pictures)


def _write_names(setting: Setting) -> dict[str, Written]:
    """Per picture, the name that the model writes under the one-turn prompt; once, whatever is asked afterwards."""
    before, after = split_prompt(setting.params.name_then_answer)
    shown = setting.questions.select("picture_id", "entity_id").unique("picture_id", maintain_order=True).rows()
    prompts = [Prompt(before, None, after, setting.pictures[p]) for p, _ in shown]
    texts = setting.ask("names", prompts, setting.params.max_new_tokens)
    spellings = {e: [n, *a] for e, n, a in setting.entities.select("entity_id", "name", "aliases").iter_rows()}
    named: dict[str, Written] = {}
    for (picture, entity), text in zip(shown, texts, strict=True):
        rivals = [s for other, found in spellings.items() if other != entity for s in found]
        name = cut_name(text)
        named[picture] = Written(name, grade(name, spellings[entity], rivals) is not None)
    return named


def _true_names(setting: Setting) -> dict[str, Written]:
    return {p: Written(n, True) for p, n in setting.questions.select("picture_id", "name").iter_rows()}


def _ask_shown(setting: Setting, strategy: str, names: dict[str, Written]) -> pl.DataFrame:
    """Picture, then the name, then the question, in one text."""
    before, after = split_prompt(setting.params.name_then_answer)

    def prompt(q: Question, name: str) -> Prompt:
        rest = continue_with(q["before"], q["after"], name)
        return Prompt(before, None, f"{after} {name}{rest}", setting.pictures[q["picture_id"]])

    rows = list(setting.questions.iter_rows(named=True))
    prompts = [prompt(q, names[q["picture_id"]].name) for q in rows]
    return _graded(setting, strategy, names, setting.ask(strategy, prompts, _answer_tokens(setting)))


def _ask_named(setting: Setting, strategy: str, names: dict[str, Written]) -> pl.DataFrame:
    """The named prompt with the model's own name; one that wrote nothing is asked without a name."""

    def prompt(q: Question, name: str) -> Prompt:
        return Prompt(q["before"], name, q["after"]) if name else Prompt(q["before"].rstrip() + q["after"])

    rows = list(setting.questions.iter_rows(named=True))
    prompts = [prompt(q, names[q["picture_id"]].name) for q in rows]
    return _graded(setting, strategy, names, setting.ask(strategy, prompts, _answer_tokens(setting)))


def _answer_tokens(setting: Setting) -> int:
    return int(setting.job.params["run_benchmark.max_new_tokens"])


def _graded(setting: Setting, strategy: str, names: dict[str, Written], answers: list[str]) -> pl.DataFrame:
    used = [names[p] for p in setting.questions["picture_id"]]
    matched = [grade(a, al) for a, al in zip(answers, setting.questions["answer_aliases"].to_list(), strict=True)]
    return setting.questions.select(
        "question_id",
        "entity_id",
        "relation",
        strategy=pl.lit(strategy),
        written_name=pl.Series([w.name for w in used], dtype=pl.String),
        name_correct=pl.Series([w.correct for w in used], dtype=pl.Boolean),
        answer_text=pl.Series(answers, dtype=pl.String),
        correct=pl.Series([m is not None for m in matched], dtype=pl.Boolean),
        matched_alias=pl.Series(matched, dtype=pl.String),
    )


def _direct(answers: pl.DataFrame) -> pl.DataFrame:
    return answers.filter(condition="image").select(
        "question_id",
        "entity_id",
        "relation",
        strategy=pl.lit("direct"),
        written_name=pl.lit(None, dtype=pl.String),
        name_correct=pl.lit(None, dtype=pl.Boolean),
        answer_text="answer_text",
        correct="correct",
        matched_alias="matched_alias",
    )


def _metrics(params: RecoverRecall, recovered: pl.DataFrame, backbone: pl.DataFrame) -> dict[str, Any]:
    by_strategy = {s: _strategy_metrics(params, recovered, backbone, s) for s in STRATEGIES}
    return {"backbone": _by_relation(params, backbone), "strategies": by_strategy}


def _strategy_metrics(
    params: RecoverRecall, recovered: pl.DataFrame, backbone: pl.DataFrame, strategy: str
) -> dict[str, Any]:
    rows = recovered.filter(strategy=strategy)
    found: dict[str, Any] = {"accuracy": _by_relation(params, rows)}
    if strategy == "direct":
        return found
    found["closed_share"] = closed_share(recovered, backbone, strategy, params.n_boot, params.seed).record()
    if strategy != "oracle_name":
        found["name_right"] = _interval(params, rows.filter(pl.col("name_correct")))
        found["name_wrong"] = _interval(params, rows.filter(~pl.col("name_correct")))
    return found


def _by_relation(params: RecoverRecall, rows: pl.DataFrame) -> dict[str, Any]:
    each = {r: _interval(params, rows.filter(relation=r)) for r in rows["relation"].unique().sort().to_list()}
    return {"all": _interval(params, rows)} | each


def _interval(params: RecoverRecall, rows: pl.DataFrame) -> dict[str, Any]:
    return {**accuracy(rows, params.n_boot, params.seed).record(), "n": rows.height}


def _headline(metrics: dict[str, Any]) -> dict[str, float]:
    return {f"accuracy_{s}": round(m["accuracy"]["all"]["value"], 4) for s, m in metrics["strategies"].items()}
