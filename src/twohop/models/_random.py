"""Tiny models with random weights, built from the classes' own configs: the pipeline's tests run on them.

A backbone and a VLM of the same seed and size share the same language model, as a real pair does. What a VLM adds to
the vocabulary has small rows in the embedding, so that it is read but hardly ever written.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from twohop.config import RandomModel
from twohop.errors import ModelError
from twohop.models._random_configs import Size
from twohop.models._random_families import VISIONS, Vision
from twohop.models._random_languages import INITIALIZER_RANGE, LANGUAGES, text_settings
from twohop.models._random_tokens import tiny_tokenizer

GATE = 0.5
"""Added to single numbers such as gates, which are born zero."""
ADDED_ROWS = 0.1
"""Factor of the embedding of tokens that a VLM adds."""
BORN_PLAIN = ("llama", "llava")
"""Families whose norms and biases stay as their classes make them."""


def build_random(folder: Path, source: RandomModel, family: str | None, role: str, image_size: int) -> None:
    """Write a tiny model of a family as a plain transformers folder, with its tokenizer and processor.

    Args:
        folder: empty folder to fill.
        source: seed, size and, for LLaVA, the tower.
        family: transformers' model_type; Llama or LLaVA when absent.
        role: `backbone` for a language model, else a vision-language model.
        image_size: side in pixels of what the tower sees.

    Raises:
        ModelError: there is no tiny model of this family in this role.
    """
    torch.manual_seed(source.seed)
    if role == "backbone":
        _known(family or "llama", LANGUAGES, source)
        net, tokenizer = _language(family or "llama", source)
        net.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    vision = VISIONS[_known(family or "llava", VISIONS, source)]
    net, processor = _vision(vision, source, image_size)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)


def _known(family: str, table: Mapping[str, Any], source: RandomModel) -> str:
    todo = f"one of: {', '.join(k for k in table if '-' not in k)}"
    if family not in table or "-" in family:
        raise ModelError(f"no tiny random model of family {family} in this role", "params.yaml", todo)
    if source.tower == "clip":
        return family
    if family != "llava":
        raise ModelError(f"a tiny {family} has no choice of tower", "params.yaml", "leave out source.tower")
    return f"{family}-{source.tower}"


def _language(family: str, source: RandomModel) -> tuple[Any, Any]:
    language = LANGUAGES[family]
    tokenizer = tiny_tokenizer(language.vocabulary)
    config = getattr(transformers, language.config)(**text_settings(family, source, tokenizer))
    net: Any = getattr(transformers, language.net)(config)
    if family not in BORN_PLAIN:
        _unsettle(net)
    return net, tokenizer


def _vision(vision: Vision, source: RandomModel, image_size: int) -> tuple[Any, Any]:
    backbone, _ = _language(vision.language, source)
    plain = LANGUAGES[vision.language].vocabulary
    vocabulary = replace(
        plain, added=(*plain.added, *vision.added), named=vision.named, chat_template=vision.chat_template
    )
    processor = vision.processor(tiny_tokenizer(vocabulary), image_size)
    tokenizer = processor.tokenizer
    shared = {name: getattr(backbone.config, name) for name in ("rope_parameters", "rms_norm_eps")}
    text = {**text_settings(vision.language, source, tokenizer), **shared}
    size = Size(image_size, source.d_model, source.n_layers, tokenizer.convert_tokens_to_ids, text)
    net: Any = getattr(transformers, vision.net)(vision.config(size))
    if vision is not VISIONS["llava"]:
        _unsettle(net)
    _share(backbone, net)
    return net, processor


def _unsettle(net: nn.Module) -> None:
    """Move norms, biases and gates away from the zeros and ones that they are born with."""
    with torch.no_grad():
        for parameter in net.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn(parameter.shape) * INITIALIZER_RANGE)
                if parameter.numel() == 1:
                    parameter.add_(GATE)


def _share(backbone: Any, net: Any) -> None:
    """Copy the backbone's weights into the VLM; layers that it has not (cross-attention) and tokens stay its own."""
    ours = backbone.model.state_dict()
    decoder = net.get_decoder()
    decoder = getattr(decoder, "model", decoder)  # Llama 4 gives the stack with its head
    crossed = getattr(decoder.config, "cross_attention_layers", None) or []
    own = iter(n for n in range(len(decoder.layers)) if n not in crossed)
    place = {str(n): str(next(own)) for n in range(len(backbone.model.layers))}
    with torch.no_grad():
        theirs = decoder.state_dict()
        for name, values in ours.items():
            parts = name.split(".")
            if parts[0] == "layers":
                parts[1] = place[parts[1]]
            _fill(theirs[".".join(parts)], values)
        head = net.get_output_embeddings().weight
        if head is not decoder.get_input_embeddings().weight:
            _fill(head, backbone.lm_head.weight)
    net.tie_weights()


def _fill(target: Tensor, values: Tensor) -> None:
    """Overwrite the first rows, make the rest small."""
    target[: len(values)] = values
    if len(target) > len(values):
        target[len(values) :] *= ADDED_ROWS
