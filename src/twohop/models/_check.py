"""Whether a model can be studied: read off its config, tokenizer and headers, before any weight is loaded.

`check_folder` looks at one folder (whole, or with headers in the place of weights), `compare` at a VLM beside its
backbone: the same layers, width, heads and MLPs, and, where both have their weights, how far these lie apart.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import transformers
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils import logging

from twohop.errors import ModelError
from twohop.models._frame import count_image_tokens, find_frame, template_of
from twohop.models._headers import HEADER, Headers, read_headers
from twohop.models._processor import cross_layers, load_processor, load_tokenizer, named_image_token, read_config

Kind = Literal["vlm", "backbone"]
_RISKY = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".gguf", ".msgpack", ".h5")
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a number, by the name that headers use; others (8-bit floats) take one."""


@dataclass(frozen=True)
class Shape:
    """What a VLM's language model shares with its backbone."""

    n_layers: int
    """Decoder layers that a run on text passes: without the layers that only attend to pictures."""
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int | None


@dataclass(frozen=True)
class Checked:
    """What a folder holds."""

    kind: Kind
    family: str
    architecture: str
    shape: Shape | None
    cross_layers: tuple[int, ...]
    """Decoder layers that attend to the picture alone."""
    vocab: int | None
    parameters: int
    weight_bytes: int
    n_files: int
    dtypes: tuple[str, ...]
    image_token: str | None
    image_token_id: int | None
    n_image_tokens: int | None
    """Tokens that a picture takes in the prompt."""
    chat_template: bool
    faults: tuple[str, ...]
    """Why it cannot be used, a line each."""
    transformers: str = field(default=str(transformers.__version__))


def check_folder(folder: Path, kind: Kind, prompt: str = "plain", picture_px: int = 224) -> Checked:
    """Look at a model folder in the transformers layout; safetensors files may be there with their header alone.

    Args:
        folder: the folder.
        kind: what it is to be used as.
        prompt: `chat` wants a chat template.
        picture_px: side of the square picture whose tokens are counted.

    Raises:
        ModelError: there is no config.json that says what model it is.
    """
    logging.disable_progress_bar()
    raw = _raw_config(folder)
    headers = read_headers(folder)
    family = str(raw.get("model_type"))
    foreign = list(_family_faults(raw, family, kind))
    faults = [*foreign, *_weight_faults(folder, headers)]
    config = None if foreign else _config(folder, faults)
    text: Any = None if config is None else config.get_text_config()
    cross = cross_layers(text)
    reader = _Reader(folder, kind, faults) if config is not None else None
    image_id = named_image_token(config) if kind == "vlm" else None
    count = None
    if reader is not None:
        reader.check_template(prompt)
        if kind == "vlm" and reader.check_image_token(image_id) and image_id is not None:
            count = reader.count(image_id, picture_px)
    return Checked(
        kind=kind,
        family=family,
        architecture=str((raw.get("architectures") or ["not named"])[0]),
        shape=None if text is None else _shape(text, cross),
        cross_layers=cross,
        vocab=None if text is None else int(text.vocab_size),
        parameters=headers.parameters,
        weight_bytes=sum(math.prod(t.shape) * _SIZES.get(t.dtype, 1) for t in headers.tensors.values()),
        n_files=len({t.file for t in headers.tensors.values()}),
        dtypes=tuple(dtype for dtype, _ in Counter(t.dtype for t in headers.tensors.values()).most_common()),
        image_token=None if reader is None or image_id is None else reader.spelling(image_id),
        image_token_id=image_id,
        n_image_tokens=count,
        chat_template=reader is not None and reader.template is not None,
        faults=tuple(faults),
    )


def _raw_config(folder: Path) -> Mapping[str, Any]:
    todo = "give a folder in the transformers layout"
    try:
        raw: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise ModelError("no config.json", str(folder), todo) from None
    except ValueError as error:
        raise ModelError(f"config.json is not JSON: {error}", str(folder), todo) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise ModelError("config.json names no model_type", str(folder), todo)
    return raw


def _family_faults(raw: Mapping[str, Any], family: str, kind: Kind) -> Iterator[str]:
    version = transformers.__version__
    if family not in CONFIG_MAPPING_NAMES:
        if "auto_map" in raw:
            yield (
                f"family {family}: wants code from its repository to run (auto_map), which is refused; take a copy "
                "that was converted to a class of transformers"
            )
        else:
            yield f"family {family}: unknown to transformers {version}; take a model of a family that it has"
    elif kind == "vlm" and family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        yield f"family {family}: transformers {version} knows it, but not as a model of pictures and text"
    elif kind == "backbone" and family not in (
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        yield f"family {family}: transformers {version} knows it, but not as a language model"


def _weight_faults(folder: Path, headers: Headers) -> Iterator[str]:
    yield from headers.faults
    if not headers.tensors and not headers.faults:
        risky = sorted(p.name for p in folder.iterdir() if p.suffix in _RISKY)
        found = f"; found {', '.join(risky[:3])}, which may run code when loaded" if risky else ""
        yield f"no safetensors file{found}; convert the weights to safetensors first"


def _config(folder: Path, faults: list[str]) -> Any:
    try:
        return read_config(folder)
    except ModelError as error:
        faults.append(_one_line(error))
        return None


def _shape(text: Any, cross: Iterable[int]) -> Shape:
    heads = int(text.num_attention_heads)
    mlp = getattr(text, "intermediate_size", None)
    return Shape(
        n_layers=int(text.num_hidden_layers) - len(tuple(cross)),
        d_model=int(text.hidden_size),
        n_heads=heads,
        n_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        d_mlp=int(mlp) if isinstance(mlp, int) else None,
    )


class _Reader:
    """Tokenizer and processor of a folder; what they lack goes to `faults`."""

    def __init__(self, folder: Path, kind: Kind, faults: list[str]) -> None:
        self._faults = faults
        self._processor = self._loaded(load_processor, folder) if kind == "vlm" else None
        own: Any = getattr(self._processor, "tokenizer", None)
        self._tokenizer: Any = own if own is not None else self._loaded(load_tokenizer, folder)

    def _loaded(self, load: Callable[[Path], Any], folder: Path) -> Any:
        try:
            return load(folder)
        except ModelError as error:
            self._faults.append(_one_line(error))
            return None

    def check_template(self, prompt: str) -> None:
        """A chat prompt wants a template that shows the user's text."""
        if self._tokenizer is None or prompt != "chat":
            return
        if self.template is None:
            self._faults.append("no chat template, and its prompt is chat; write `prompt: plain` (backbone_prompt)")
            return
        try:
            find_frame(self._tokenizer, None, chat=True)
        except ModelError as error:
            self._faults.append(_one_line(error))

    def check_image_token(self, image_id: int | None) -> bool:
        """Whether the tokenizer has the image token, as one that it added to its vocabulary."""
        if image_id is None:
            self._faults.append("config.json names no image token (image_token_id); its family is not supported")
        elif self._tokenizer is not None and self.spelling(image_id) is None:
            self._faults.append(
                f"tokenizer: has no token {image_id}, the image token of config.json (it has {len(self._tokenizer)}); "
                "take the tokenizer that belongs to the model"
            )
        elif self._tokenizer is not None and self.spelling(image_id) not in self._tokenizer.get_added_vocab():
            self._faults.append(
                f"tokenizer: token {image_id}, the image token of config.json, is the plain text "
                f"{self.spelling(image_id)!r}; take the tokenizer that belongs to the model"
            )
        else:
            return self._tokenizer is not None
        return False

    @property
    def template(self) -> str | None:
        """The chat template."""
        return template_of(self._tokenizer, self._processor)

    def spelling(self, token: int) -> str | None:
        """How the tokenizer spells a token; None: it has none of that id."""
        if self._tokenizer is None or not 0 <= token < len(self._tokenizer):
            return None
        return self._tokenizer.convert_ids_to_tokens(token)

    def count(self, image_id: int, picture_px: int) -> int | None:
        """Image tokens that the model's own processor writes for a picture."""
        if self._processor is None:
            return None
        try:
            placeholder = find_frame(self._tokenizer, self._processor).placeholder
            found = count_image_tokens(self._processor, placeholder, image_id, picture_px)
        except ModelError as error:
            self._faults.append(_one_line(error))
            return None
        if found == 0:
            self._faults.append(f"processor: writes no image token ({image_id}) for a picture")
        return found or None


def _one_line(error: ModelError) -> str:
    return " ".join(f"{error.what}; {error.todo}".split())


# --- a VLM beside its backbone ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How a VLM's language model and its backbone compare."""

    faults: tuple[str, ...]
    n_tensors: int
    """Tensors of decoder layers that both have."""
    distances: tuple[float, ...] | None
    """||W_vlm - W_backbone|| / ||W_backbone|| over all tensors of a layer, by layer; None: weights are not at hand."""


def compare(vlm: Path, backbone: Path, vlm_checked: Checked, backbone_checked: Checked, distances: bool = True) -> Fit:
    """Compare shapes by config and, layer by layer, by headers; with `distances` weights too, where both hold them."""
    faults = list(_shape_faults(vlm_checked.shape, backbone_checked.shape))
    a, b = read_headers(vlm), read_headers(backbone)
    own = [layer for i, layer in a.layers().items() if i not in vlm_checked.cross_layers]
    pairs = [
        [(x[name], y[name]) for name in x.keys() & y.keys()] for x, y in zip(own, b.layers().values(), strict=False)
    ]
    if not faults:
        faults += _tensor_faults(a, b, own, pairs)
    whole = not any(p.suffix == HEADER for folder in (vlm, backbone) for p in folder.iterdir())
    good = distances and not faults and not a.faults and not b.faults and any(pairs)
    apart = tuple(_distance(vlm, backbone, a, b, pair) for pair in pairs) if whole and good else None
    return Fit(tuple(faults), sum(map(len, pairs)), apart)


def _shape_faults(vlm: Shape | None, backbone: Shape | None) -> Iterator[str]:
    if vlm is None or backbone is None:
        return
    words = {
        "n_layers": "layers on text",
        "d_model": "d_model",
        "n_heads": "heads",
        "n_kv_heads": "key-value heads",
        "d_mlp": "units in its MLPs",
    }
    for name, word in words.items():
        a, b = getattr(vlm, name), getattr(backbone, name)
        if a is not None and b is not None and a != b:
            yield f"backbone does not fit: the VLM's language model has {a} {word}, the backbone {b}"


def _tensor_faults(
    a: Headers, b: Headers, own: list[dict[str, str]], pairs: list[list[tuple[str, str]]]
) -> Iterator[str]:
    """The first tensor that differs; all the others would say the same."""
    if not a.tensors or not b.tensors:
        return
    if not any(pairs):
        yield "backbone does not fit: no tensor of its decoder layers has a name of the VLM's"
        return
    for layer, (names, found) in enumerate(zip(own, pairs, strict=False)):
        for x, y in sorted(found):
            if a.tensors[x].shape != b.tensors[y].shape:
                shapes = f"{list(a.tensors[x].shape)} in the VLM, {list(b.tensors[y].shape)} in the backbone"
                yield f"backbone does not fit: layer {layer}, {y}: {shapes}"
                return
        if len(found) < len(names) // 2:
            yield f"backbone does not fit: layer {layer} shares {len(found)} of {len(names)} tensors"
            return


def _distance(vlm: Path, backbone: Path, a: Headers, b: Headers, pair: list[tuple[str, str]]) -> float:
    apart = norm = 0.0
    for x, y in pair:
        with safe_open(vlm / a.tensors[x].file, "pt") as left, safe_open(backbone / b.tensors[y].file, "pt") as right:
            mine, theirs = left.get_tensor(x).double(), right.get_tensor(y).double()
        apart += float((mine - theirs).square().sum())
        norm += float(theirs.square().sum())
    return math.sqrt(apart / norm) if norm else math.inf
