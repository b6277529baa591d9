"""Step train_projector: what an assembled VLM adds to its frozen parts, trained on some art sources.

1. render every flag of the training sources, with augmented copies;
2. train by the entry's recipe (`caption`, `early`, `native`, `cross`; the frozen tower sees each copy once);
3. measure recognition on the other, held-out sources: free naming, and the name with the largest log-probability.

Small outputs are versioned in git (`snakemake train_projectors` redoes them) and no part of `all`; those that a
catalogue entry names below results/ are made by the pipeline, and versioned by DVC.
"""

import importlib.metadata
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from PIL.Image import Image
from safetensors.torch import save_file
from torch import Tensor

from twohop.analysis import grade
from twohop.config import PrepareModel, TrainProjector
from twohop.data import EntityRecord, FlagsSource, PictureRecord, augment, decode_picture, fetch_picture
from twohop.models import Model, Prompt, assembled_model, train_assembled, training_facts
from twohop.steps._asking import ask, split_prompt
from twohop.steps._step import Job, Step, Summary
from twohop.store import atomic_path, sha256_file, write_json

LOG = logging.getLogger(__name__)
STEP = Step(
    name="train_projector",
    params=(
        "train_projector",
        "prepare_model",
        "models.{model}",
        "fetch_images.size_px",
        "fetch_images.background",
        "run_benchmark.recognition_prompts",
    ),
    inputs=(),
    outputs=("projector", "log"),
)
LOG_EVERY = 10
"""Training steps between two lines of the log."""
EVAL_BATCH = 32
NAME_TOKENS = 10
"""Tokens of a freely written name."""
LIBRARIES = ("torch", "transformers", "numpy", "pillow", "matplotlib")


def run(job: Job) -> Summary:
    """Train, write the projector, measure it, write its log."""
    start, settings = time.monotonic(), job.section(TrainProjector)
    entities = {e.entity_id: e for e in FlagsSource().entities()}
    records = list(FlagsSource().pictures())
    train = [r for r in records if r.art_source in settings.train_sources]
    held_out = [r for r in records if r.art_source not in settings.train_sources]
    prepare = job.section(PrepareModel)
    trained = train_assembled(
        job.entry(),
        prepare,
        settings,
        _copies(job, train, settings),
        [entities[r.entity_id].name for r in train],
        job.work,
        _progress,
    )
    seconds = time.monotonic() - start
    _write_projector(job, trained.projector)
    model = assembled_model(job.need_model(), job.entry(), prepare, trained.projector)
    measured = _recognition(job, model, held_out, list(entities.values()))
    facts = training_facts(job.entry(), trained.projector, [e.name for e in entities.values()])
    write_json(job.output("log"), _log(job, trained.losses, measured, seconds, len(train)) | facts)
    return {"done": len(trained.losses), "failed": 0, "last_loss": round(trained.losses[-1], 4)} | _headline(measured)


def _progress(step: int, loss: float) -> None:
    if step % LOG_EVERY == 0:
        LOG.info("training step %d: loss %.4f", step, loss)


def _copies(job: Job, records: Sequence[PictureRecord], settings: TrainProjector) -> list[list[Image]]:
    """The plain picture and its augmented copies, drawn from (seed, picture, copy) alone."""
    canvas = _background(job)
    copies: list[list[Image]] = []
    for i, (record, plain) in enumerate(zip(records, _rendered(job, records), strict=True)):
        draws = [np.random.default_rng([settings.seed, i, k]) for k in range(1, settings.copies)]
        copies.append([plain, *(augment(plain, canvas, rng) for rng in draws)])
        if i % 200 == 0:
            LOG.info("pictures: %d of %d (%s)", i, len(records), record.picture_id)
    return copies


def _background(job: Job) -> tuple[int, int, int]:
    red, green, blue = cast("list[int]", job.params["fetch_images.background"])
    return red, green, blue


def _rendered(job: Job, records: Iterable[PictureRecord]) -> list[Image]:
    size, background = int(job.params["fetch_images.size_px"]), _background(job)
    return [decode_picture(fetch_picture(r.locator, size, background), r.picture_id) for r in records]


def _write_projector(job: Job, projector: dict[str, Tensor]) -> None:
    with atomic_path(job.output("projector")) as tmp:
        save_file(projector, tmp)


def _recognition(
    job: Job, model: Model, records: Sequence[PictureRecord], entities: Sequence[EntityRecord]
) -> list[dict[str, Any]]:
    """Per held-out style and prompt: share named freely, and share ranked first among all names."""
    rows: list[dict[str, Any]] = []
    for style in sorted({r.style for r in records}):
        shown = [r for r in records if r.style == style]
        rows += _style_recognition(job, model, shown, entities)
    return rows


def _style_recognition(
    job: Job, model: Model, shown: Sequence[PictureRecord], entities: Sequence[EntityRecord]
) -> list[dict[str, Any]]:
    truth, names = {e.entity_id: e for e in entities}, [e.name for e in entities]
    pictures = model.encode_pictures(_rendered(job, shown))
    rows: list[dict[str, Any]] = []
    for template in cast("list[str]", job.params["run_benchmark.recognition_prompts"]):
        before, after = split_prompt(template)
        prompts = [Prompt(before, None, after, picture) for picture in pictures]
        said = ask(model, prompts, EVAL_BATCH, lambda b: model.generate(b, NAME_TOKENS), "free naming")
        best = ask(model, prompts, EVAL_BATCH, lambda b: model.best_names(b, names), "ranking")
        wanted = [truth[r.entity_id] for r in shown]
        named = [_names_it(text, entity, entities) for text, entity in zip(said, wanted, strict=True)]
        ranked = [names[i] == entity.name for i, entity in zip(best, wanted, strict=True)]
        rows.append(
            {
                "style": shown[0].style,
                "art_source": shown[0].art_source,
                "prompt": template,
                "n": len(shown),
                "named": float(np.mean(named)),
                "ranked": float(np.mean(ranked)),
            }
        )
    return rows


def _names_it(text: str, entity: EntityRecord, entities: Sequence[EntityRecord]) -> bool:
    rivals = [alias for e in entities if e.entity_id != entity.entity_id for alias in e.aliases]
    return grade(text, entity.aliases, rivals) is not None


def _headline(measured: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over held-out styles and prompts."""
    return {f"held_out_{key}": round(float(np.mean([row[key] for row in measured])), 4) for key in ("named", "ranked")}


def _log(
    job: Job, losses: list[float], measured: list[dict[str, Any]], seconds: float, n_pictures: int
) -> dict[str, Any]:
    return {
        "model": job.need_model(),
        "params": dict(job.params),
        "n_pictures": n_pictures,
        "losses": [round(x, 5) for x in losses],
        "recognition": measured,
        "seconds": round(seconds, 1),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "projector_sha256": sha256_file(job.output("projector")),
    }
