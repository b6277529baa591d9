"""Pictures through the real processor, the tower and the projector, once each; and the inputs that go with them.

Features come from the model's own `get_image_features`, whose output is the same for all families but the ones below.
How many image tokens a picture takes, and which further inputs a model wants, is read off the processor's output.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from twohop.errors import ModelError
from twohop.models._devices import compute_device
from twohop.models._frame import END, START, Frame, call, process
from twohop.models._processor import cross_layers
from twohop.models._prompts import Picture

AT_ONCE = 16
"""Pictures that go through the tower at once; bounds memory."""
PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Inputs with a number per token; which tokens are marked is read off the processor's output."""
PER_PICTURE = ("image_grid_thw",)
"""Inputs that a model wants beside a picture's features, to give its tokens their positions."""
TEXT = ("input_ids", "attention_mask", "labels")


@dataclass(frozen=True)
class Eyes:
    """How a model sees."""

    net: Any
    processor: Any
    frame: Frame
    image_token_id: int
    marked: Mapping[str, frozenset[int]]
    """Per-token inputs that the model takes: ids of the tokens that are marked with 1."""

    @property
    def crosses(self) -> bool:
        """Pictures are read by cross-attention layers, not as tokens of the prompt."""
        return bool(cross_layers(self.net.config.get_text_config()))

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image]) -> list[Picture]:
        """Each picture as the language model gets it.

        Raises:
            ModelError: the processor or the model refuses a picture, or features and image tokens differ in number.
        """
        found: list[Picture] = []
        for i in range(0, len(pictures), AT_ONCE):
            chunk = [p.convert("RGB") for p in pictures[i : i + AT_ONCE]]
            made = [self._process(p) for p in chunk]
            found += self._cross(made) if self.crosses else self._features(made)
        return found

    def _process(self, picture: Image) -> "_Processed":
        found, inputs = process(self.processor, f"{START}{self.frame.placeholder}{END}", picture)
        return _Processed(found.entity, inputs)

    def _features(self, made: Sequence["_Processed"]) -> list[Picture]:
        counts = [int((m.inputs["input_ids"] == self.image_token_id).sum()) for m in made]
        out = self.net.get_image_features(**self._tower_inputs(made), return_dict=True)
        if self.net.config.model_type == "llama4":  # its projector is applied in the model's forward
            rows = self.net.multi_modal_projector(_rows(out.last_hidden_state))
        else:
            rows = _rows(out.pooler_output)
        deep = [_rows(level) for level in getattr(out, "deepstack_features", None) or ()]
        if len(rows) != sum(counts) or 0 in counts:
            raise ModelError(
                f"{len(rows)} rows of features for {sum(counts)} image tokens of {len(made)} pictures",
                type(self.net).__name__,
                "the processor's files do not fit the model: download it again",
            )
        split = zip(
            made,
            rows.split(counts),
            zip(*(level.split(counts) for level in deep), strict=True) if deep else [()] * len(made),
            strict=True,
        )
        return [
            Picture(features.clone(), m.text, tuple(d.clone() for d in levels), None, m.beside())
            for m, features, levels in split
        ]

    def _tower_inputs(self, made: Sequence["_Processed"]) -> dict[str, Tensor]:
        """What `get_image_features` takes of the processor's output, for all pictures at once.

        Raises:
            ModelError: a key of the processor would be dropped (promise X9).
        """
        taken = {**inspect.signature(self.net.get_image_features).parameters}
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
            # it hands on what the model's forward takes by name, e.g. Pixtral's image_sizes in a LLaVA model
            taken |= {k: p for k, p in inspect.signature(self.net.forward).parameters.items() if k.startswith("image_")}
        known = {*TEXT, *PER_TOKEN, *PER_PICTURE, *taken}
        dropped = sorted(set(made[0].inputs) - known)
        if dropped:
            raise ModelError(
                f"nothing takes the processor's {', '.join(dropped)}", type(self.net).__name__, "family not supported"
            )
        return {
            k: _joined([m.inputs[k] for m in made], self.net)
            for k in made[0].inputs
            if k in taken and k not in TEXT and k not in PER_TOKEN
        }

    def _cross(self, made: Sequence["_Processed"]) -> list[Picture]:
        """Mllama: states that the cross-attention layers read, all tiles of a picture in a row."""
        keys = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        inputs = {k: _joined([m.inputs[k] for m in made], self.net) for k in keys}
        core = self.net.model
        states = core.multi_modal_projector(core.vision_model(**inputs).last_hidden_state)
        states = states.reshape(len(made), -1, states.shape[-1])
        tiles = [m.inputs["cross_attention_mask"][0, -1, 0] for m in made]
        return [Picture(None, m.text, (), s.clone(), {"tiles": t}) for m, s, t in zip(made, states, tiles, strict=True)]


@dataclass(frozen=True)
class _Processed:
    """One picture after the processor."""

    text: str
    """What it writes for the picture."""
    inputs: Mapping[str, Any]

    def beside(self) -> dict[str, Tensor]:
        return {k: self.inputs[k] for k in PER_PICTURE if k in self.inputs}


def open_eyes(net: Any, processor: Any, frame: Frame, image_token_id: int) -> Eyes:
    """Learn from one blank picture which tokens the processor marks.

    Raises:
        ModelError: the processor fails, or marks tokens in a way that depends on more than their ids.
    """
    from PIL import Image

    out = call(processor, f"a{frame.placeholder}b", Image.new("RGB", (64, 64), (128, 128, 128)))
    takes = {**inspect.signature(net.forward).parameters}
    inner = getattr(net, "model", None)
    takes |= {} if inner is None else {**inspect.signature(inner.forward).parameters}
    ids, marked = out["input_ids"][0].tolist(), dict[str, frozenset[int]]()
    for key in PER_TOKEN:
        if key in out and key in takes:
            values = out[key][0].tolist()
            marked[key] = frozenset(i for i, v in zip(ids, values, strict=True) if v == 1)
            if [int(i in marked[key]) for i in ids] != values:
                raise ModelError(f"cannot tell how {key} is made", type(processor).__name__, "family not supported")
    return Eyes(net, processor, frame, image_token_id, marked)


def _joined(parts: Sequence[Any], net: Any) -> Tensor:
    """One tensor for all pictures, on the model's device and in its number format.

    Raises:
        ModelError: the processor makes arrays of different sizes of pictures of one size.
    """
    shapes = {tuple(p.shape[1:]) for p in parts}
    if len(shapes) > 1:
        raise ModelError(
            f"pictures of one batch become arrays of sizes {sorted(shapes)}",
            type(net).__name__,
            "give pictures of one size (fetch_images.size_px)",
        )
    whole = torch.cat(list(parts)).to(compute_device(net))
    return whole.to(net.dtype) if whole.is_floating_point() else whole


def _rows(out: Any) -> Float[Tensor, "image_token d_model"]:
    """Features of all pictures below each other."""
    if isinstance(out, (list, tuple)):
        return torch.cat([_rows(part) for part in out])
    return out.flatten(0, -2)
