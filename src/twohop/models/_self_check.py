"""What the short pass of `_layout` cannot see, on a picture: cross-attention layers, and that the picture matters."""

import torch
from PIL import Image

from twohop.errors import ModelError
from twohop.models._layout import COARSE, TOLERANCE
from twohop.models._model import Model
from twohop.models._prompts import Prompt
from twohop.models._sites import Site

SIDE = 64
"""Pixels; any picture will do."""


def check_picture_run(model: Model, picture_px: int = SIDE) -> None:
    """One picture through the whole model: every layer adds its two writes, and the answer depends on the picture.

    Raises:
        ModelError: a layer gains something else than its two writes, a logit is no number, or two pictures that have
            nothing in common give the same logits (a projector or gates that were never trained).
    """
    colours = [Image.new("RGB", (picture_px, picture_px), c) for c in ((0, 0, 0), (255, 128, 0))]
    seen = model.eyes.encode(colours) if model.eyes is not None else []
    batch = model.batch([Prompt("This is ", None, " .", p) for p in seen])
    crossed = sorted(model.decoder.cross_layers)
    sites = [Site(kind, n) for n in crossed for kind in ("resid_post", "mlp_write", "attn_write")]
    run = model.run(batch, {*sites, *(Site("resid_post", n - 1) for n in crossed)})
    if not bool(run.logits.isfinite().all()):
        raise ModelError("logits of a picture run are not numbers", model.name, "use another loading.dtype")
    if torch.equal(run.logits[0], run.logits[1]):
        raise ModelError(
            "two different pictures give the same logits", model.name, "the folder lacks trained weights of its eyes"
        )
    limit = TOLERANCE.get(model.dtype, COARSE)
    for n in crossed:
        gained = (run.activations[Site("resid_post", n)] - run.activations[Site("resid_post", n - 1)]).double()
        written = (run.activations[Site("mlp_write", n)] + run.activations[Site("attn_write", n)]).double()
        if float((gained - written).norm()) > limit * float(gained.norm()):
            raise ModelError(f"cross-attention layer {n} gains something else than it writes", model.name, "report it")
