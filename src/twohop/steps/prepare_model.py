"""Step prepare_model: from a catalogue entry to a local, hash-checked folder and its card (study, Models).

The card is the artifact: it holds the entry, the recipe's parameters, and size and sha256 of every file. The folder
itself is a cache that `open_model` makes again when it is absent.
"""

import logging

from twohop.config import PrepareModel
from twohop.models import check_backbone, materialise, read_card
from twohop.steps._step import Job, Step, Summary
from twohop.store import write_json

LOG = logging.getLogger(__name__)
STEP = Step(
    name="prepare_model",
    params=("prepare_model", "models.{model}", "fetch_images.size_px"),
    inputs=("projector", "backbone"),
    outputs=("card",),
)


def run(job: Job) -> Summary:
    """Make the folder, check it, and write its card.

    Raises:
        ModelError: a source is missing, altered, or no model of the entry's family; or the backbone has other shapes.
    """
    card = materialise(
        job.need_model(), job.entry(), job.section(PrepareModel), int(job.params["fetch_images.size_px"])
    )
    for backbone in job.inputs["backbone"]:
        check_backbone(card, read_card(backbone))
    write_json(job.output("card"), card.model_dump(mode="json"))
    size = sum(record.bytes for record in card.files.values())
    LOG.info("%s: %s, %d layers, d_model %d, %d bytes", card.name, card.architecture, card.n_layers, card.d_model, size)
    return {"done": 1, "failed": 0, "files": len(card.files), "bytes": size, "parameters": card.parameters}
