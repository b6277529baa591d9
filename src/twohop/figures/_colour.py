"""A model's colour, the same in every figure."""

from twohop.figures import _look as look
from twohop.figures._study import Study


def colour(study: Study, model: str) -> str:
    """A model's colour in every figure."""
    role = study.models[model].role
    if role == "vlm":
        return look.MODEL_COLOURS[study.names("vlm").index(model) % len(look.MODEL_COLOURS)]
    return look.BACKBONE if role == "backbone" else look.CONTROL
