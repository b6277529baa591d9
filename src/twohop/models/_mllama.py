"""The embedded cross-attention model: CLIP's tower and SmolLM2 inside a `MllamaForConditionalGeneration`.

1. `converted_tower`: CLIP ViT-B/16 as a `MllamaVisionModel` that gives the same features (see below).
2. `crossed`: gated cross-attention layers (Alayrac et al. 2022, arXiv 2204.14198; Llama 3.2 Vision) between the
   backbone's own layers, whose weights are taken bit by bit. A text-only run skips the new layers.
3. `mllama_processor`: the real processor; spare tokens of the tokenizer get the names that it looks for.

Mllama's vision attention has no biases, and its padding patches can be attended to; CLIP has biases and no padding. The
mapping is exact nevertheless (but for rounding), because the width is free: every head gets `HEAD_PAD` more dimensions
and the residual stream as many per head, which hold 0 for real patches. With them

- a dimension that the layer norm sets to 1 (weight 0, bias 1) carries the biases of q, k and v, and, through a head's
  spare dimension that is 1 under any attention, the bias of the output projection;
- layer norms see more dimensions, which changes the deviation by a constant factor, as long as the mean is 0: all that
  is written to the residual is centred, which CLIP's own layer norms do not see;
- a first layer, the marker, centres the residual, and writes a large number to one spare dimension of padding patches
  only (which are 0 before it, where real patches hold a flag that it takes away), so that later layers give them no
  attention.

So the features are CLIP's without their mean over the dimensions, one of 768 directions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twohop.errors import ModelError
from twohop.models import _embedded

IMAGE_TOKEN, CODE_TOKEN = "<|image|>", "<|python_tag|>"
"""Names that `MllamaProcessor` looks for."""
RENAMED = {_embedded.SPARE_TOKEN: IMAGE_TOKEN, "<jupyter_script>": CODE_TOKEN}
"""Control tokens of the backbone's code corpus that take these names; every id keeps its number."""
EXTRA_ROWS = 8
"""Rows that `MllamaTextModel` adds to the embedding; zeros here, no id points at them."""
HEAD_PAD = 8
"""Spare dimensions of each vision head."""
FLAG, EMPTY, ONE = 0, 1, 2
"""Spare dimensions of the vision residual: the marker of padding, one that is always 0, the layer norms' constant."""
MASK_SLOT, ONE_SLOT = 0, 1
"""Spare dimensions of a head: the score that shuts padding out, and the constant that carries the output bias."""
PADDING_SCORE = 1000.0
"""What a padding patch's attention score is lowered by."""
STEEP = 100.0
"""Slope of the marker's hidden unit: its activation is 0 in float32 for every real patch."""
FLAG_SIZE, MARK_SIZE = 1000.0, 1000.0
"""The flag of real patches and the mark of padding, in units of the residual's scale."""
CROSS_PREFIX, PROJECTOR_PREFIX = "cross_layers.", "projector."
"""Prefixes of the two parts in a file of recipe `cross`."""


@dataclass(frozen=True)
class _Widths:
    """Sizes of the tower: CLIP's and the wider ones."""

    heads: int
    head: int
    d_clip: int

    @property
    def wide_head(self) -> int:
        return self.head + HEAD_PAD

    @property
    def d_wide(self) -> int:
        return self.heads * self.wide_head

    @property
    def shrink(self) -> float:
        """Standard deviation over the wide stream in units of that over CLIP's dimensions."""
        return math.sqrt(self.d_clip / self.d_wide)

    def spare(self, which: int) -> int:
        return self.d_clip + which

    def slot(self, head: int, which: int) -> int:
        return head * self.wide_head + self.head + which


# --- the tower ------------------------------------------------------------------------------------------------------


def vision_config(clip: Any) -> Any:
    """`MllamaVisionConfig` of a converted tower: one tile, no global layers, features of the last layer unnormed."""
    from transformers import MllamaVisionConfig

    widths = _widths(clip)
    return MllamaVisionConfig(
        hidden_size=widths.d_wide,
        hidden_act=clip.hidden_act,
        num_hidden_layers=clip.num_hidden_layers + 1,
        num_global_layers=0,
        attention_heads=widths.heads,
        intermediate_size=clip.intermediate_size,
        vision_output_dim=2 * widths.d_wide,
        image_size=clip.image_size,
        patch_size=clip.patch_size,
        norm_eps=clip.layer_norm_eps * widths.shrink**2,
        max_num_tiles=1,
        intermediate_layers_indices=[clip.num_hidden_layers],
        supported_aspect_ratios=[[1, 1]],
    )


def _widths(clip: Any) -> _Widths:
    heads = int(clip.num_attention_heads)
    return _Widths(heads, int(clip.hidden_size) // heads, int(clip.hidden_size))


def converted_tower(tower: Any) -> Any:
    """A `MllamaVisionModel` whose features are a `CLIPVisionModel`'s, centred.

    Its output is (batch, image, tile, patch, 2 * d_wide): the normed features, then CLIP's `last_hidden_state` (class
    token first) less its mean; `clip_features` takes the latter out.
    """
    from transformers import MllamaVisionModel

    model: Any = MllamaVisionModel(vision_config(tower.config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _convert_embeddings(model, tower, _widths(tower.config))
        _write_marker(model.transformer.layers[0], tower, _widths(tower.config))
        for new, old in zip(model.transformer.layers[1:], tower.encoder.layers, strict=True):
            _convert_layer(new, old, _widths(tower.config))
    return model


def clip_features(
    output: Float[Tensor, "batch image tile patch width"], clip: Any
) -> Float[Tensor, "batch image tile patch d_clip"]:
    """CLIP's centred features in the output of a converted tower."""
    widths = _widths(clip)
    return output[..., widths.d_wide : widths.d_wide + widths.d_clip]


def _convert_embeddings(model: Any, tower: Any, w: _Widths) -> None:
    """Patches, class token and positions, centred (the layer norm after them does not see the mean)."""
    old, d = tower.embeddings, w.d_clip
    model.patch_embedding.weight[:d] = centred(old.patch_embedding.weight)
    model.class_embedding[:d] = centred(old.class_embedding)
    model.gated_positional_embedding.embedding[:, :d] = centred(old.position_embedding.weight.T).T
    model.layernorm_pre.weight[:d] = tower.pre_layrnorm.weight * w.shrink
    model.layernorm_pre.bias[:d] = tower.pre_layrnorm.bias
    model.layernorm_pre.bias[w.spare(FLAG)] = FLAG_SIZE * _scale(tower)
    model.layernorm_post.weight[:d] = w.shrink


def centred(values: Tensor) -> Tensor:
    """Without the mean over the first axis, the channels."""
    return values - values.mean(0, keepdim=True)


def _scale(tower: Any) -> float:
    """Root mean square of the residual stream that enters the first layer."""
    norm = tower.pre_layrnorm
    return float((norm.weight.square() + norm.bias.square()).mean().sqrt())


def _write_marker(layer: Any, tower: Any, w: _Widths) -> None:
    """The layer that centres real patches, takes their flag away and marks padding.

    The flag is so large that the layer norm divides every real patch by nearly the same deviation. One hidden unit
    tells padding, two of opposite sign give the mean (gelu(z) - gelu(-z) = z, quick or not).
    """
    flag, empty, d, size = w.spare(FLAG), w.spare(EMPTY), w.d_clip, FLAG_SIZE * _scale(tower)
    layer.input_layernorm.weight.fill_(1)
    layer.post_attention_layernorm.weight[: d + 2] = 1
    mlp = layer.mlp
    mlp.fc1.weight[0, flag] = -STEEP
    mlp.fc1.bias[0] = STEEP
    mlp.fc2.weight[flag, 0] = (MARK_SIZE * _scale(tower) + size) / STEEP
    mlp.fc2.bias[flag] = -size
    deviation = math.sqrt((size**2 + d * _scale(tower) ** 2) / w.d_wide - (size / w.d_wide) ** 2)
    for unit, sign in ((1, 1.0), (2, -1.0)):
        mlp.fc1.weight[unit, :d] = sign / d
        mlp.fc1.weight[unit, empty] = -sign  # the norm's own mean, which the flag dominates
        mlp.fc2.weight[:d, unit] = -sign * deviation


def _convert_layer(new: Any, old: Any, w: _Widths) -> None:
    d, ones = w.d_clip, (w.spare(FLAG), w.spare(EMPTY))
    new.input_layernorm.weight[:d] = 1
    new.input_layernorm.weight[list(ones)] = 1
    new.input_layernorm.bias[w.spare(ONE)] = 1
    _convert_attention(new.self_attn, old.self_attn, old.layer_norm1, w)
    new.post_attention_layernorm.weight[:d] = 1
    weight, bias = behind_norm(old.mlp.fc1, old.layer_norm2, w.shrink)
    new.mlp.fc1.weight[:, :d] = weight
    new.mlp.fc1.bias.copy_(bias)
    new.mlp.fc2.weight[:d] = centred(old.mlp.fc2.weight)
    new.mlp.fc2.bias[:d] = centred(old.mlp.fc2.bias)


def _convert_attention(new: Any, old: Any, norm: nn.LayerNorm, w: _Widths) -> None:
    d, one = w.d_clip, w.spare(ONE)
    rows = torch.cat([torch.arange(w.head) + head * w.wide_head for head in range(w.heads)])
    longer = math.sqrt(w.wide_head / w.head)  # the class divides scores by the wide head's root
    for name, factor in (("q_proj", longer), ("k_proj", 1.0), ("v_proj", 1.0)):
        weight, bias = behind_norm(getattr(old, name), norm, w.shrink)
        target = getattr(new, name).weight
        target[rows, :d] = factor * weight
        target[rows, one] = factor * bias
    lowered = PADDING_SCORE * math.sqrt(w.wide_head) / math.sqrt(w.d_wide)  # a marked patch's norm gives sqrt(d_wide)
    for head in range(w.heads):
        new.q_proj.weight[w.slot(head, MASK_SLOT), one] = 1
        new.k_proj.weight[w.slot(head, MASK_SLOT), w.spare(FLAG)] = -lowered
        new.k_proj.weight[w.slot(head, MASK_SLOT), w.spare(EMPTY)] = lowered
    new.v_proj.weight[w.slot(0, ONE_SLOT), one] = 1
    new.o_proj.weight[:d, rows] = centred(old.out_proj.weight)
    new.o_proj.weight[:d, w.slot(0, ONE_SLOT)] = centred(old.out_proj.bias)


def behind_norm(linear: Any, norm: Any, shrink: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of `linear(norm(x))` for a norm without scale and shift that also sees the spare dimensions.

    `shrink`: standard deviation over all dimensions in units of that over CLIP's own.
    """
    weight = linear.weight * norm.weight
    weight = (weight - weight.mean(1, keepdim=True)) * shrink
    return weight, linear.bias + linear.weight @ norm.bias


# --- the model ------------------------------------------------------------------------------------------------------


def assemble_cross(backbone_dir: Path, tower_dir: Path, trained: Mapping[str, Tensor], out: Path) -> None:
    """One `MllamaForConditionalGeneration` folder that loads with plain `from_pretrained`, and its `MllamaProcessor`.

    Args:
        backbone_dir: a Llama folder, its weights are taken bit by bit.
        tower_dir: a `CLIPVisionModel` folder.
        trained: what recipe `cross` writes (any float dtype).
        out: folder to make.

    Raises:
        ModelError: the parts do not fit together.
    """
    model, processor = crossed(backbone_dir, tower_dir, cross_layers_of(trained))
    load_trained(model, trained)
    with _embedded.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def crossed(backbone_dir: Path, tower_dir: Path, cross_layers: Sequence[int]) -> tuple[Any, Any]:
    """Model and processor with closed gates; `cross_layers` are indices of the new layers among all layers.

    Raises:
        ModelError: an index beyond the last layer.
    """
    from transformers import AutoModelForCausalLM, CLIPVisionModel, MllamaForConditionalGeneration

    backbone = AutoModelForCausalLM.from_pretrained(backbone_dir, dtype=torch.float32, local_files_only=True)
    tower: Any = CLIPVisionModel.from_pretrained(tower_dir, dtype=torch.float32, local_files_only=True)
    processor = mllama_processor(backbone_dir, tower.config.image_size)
    config = mllama_config(backbone.config, vision_config(tower.config), processor.image_token_id, cross_layers)
    model: Any = MllamaForConditionalGeneration(config).float().eval()
    model.model.vision_model.load_state_dict(converted_tower(tower).state_dict())
    _take_backbone(model, backbone, cross_layers)
    model.generation_config = backbone.generation_config
    return model, processor


def mllama_config(text: Any, vision: Any, image_token_id: int, cross_layers: Sequence[int]) -> Any:
    """`MllamaConfig` round a Llama config: as many layers more as there are cross-attention layers.

    Raises:
        ModelError: an index beyond the last layer, or one given twice.
    """
    from transformers import MllamaConfig

    n_layers = int(text.num_hidden_layers) + len(cross_layers)
    if sorted(set(cross_layers)) != list(cross_layers) or not cross_layers or not 0 <= max(cross_layers) < n_layers:
        what = f"cross-attention layers {list(cross_layers)} of {n_layers} layers"
        raise ModelError(what, "train_projector.cross.layers", "give ascending indices below the number of layers")
    kept = ("vocab_size", "hidden_size", "hidden_act", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    kept += ("intermediate_size", "max_position_embeddings", "initializer_range", "rope_parameters")
    kept += ("bos_token_id", "eos_token_id", "pad_token_id")
    inherited = {name: getattr(text, name) for name in kept if getattr(text, name) is not None}
    inner = {**inherited, "num_hidden_layers": n_layers, "cross_attention_layers": list(cross_layers)}
    config: Any = MllamaConfig(
        text_config={**inner, "tie_word_embeddings": False},  # the embedding has EXTRA_ROWS more than the output matrix
        vision_config=vision.to_dict(),
        image_token_index=image_token_id,
    )
    config.tie_word_embeddings = False
    config.pad_token_id = text.pad_token_id
    return config


def _take_backbone(model: Any, backbone: Any, cross_layers: Sequence[int]) -> None:
    decoder, n_words = model.model.language_model, backbone.config.vocab_size
    with torch.no_grad():
        decoder.embed_tokens.weight[:n_words] = backbone.model.embed_tokens.weight
        decoder.embed_tokens.weight[n_words:] = 0
    model.lm_head.load_state_dict({"weight": backbone.lm_head.weight})
    decoder.norm.load_state_dict(backbone.model.norm.state_dict())
    own = [layer for i, layer in enumerate(decoder.layers) if i not in cross_layers]
    for new, old in zip(own, backbone.model.layers, strict=True):
        new.load_state_dict(old.state_dict())


def trained_modules(model: Any) -> dict[str, nn.Module]:
    """Modules that recipe `cross` trains, by their prefix in its file."""
    decoder = model.model.language_model
    layers = {f"{CROSS_PREFIX}{i}.": decoder.layers[i] for i in decoder.cross_attention_layers}
    return {PROJECTOR_PREFIX: model.model.multi_modal_projector, **layers}


def cross_layers_of(trained: Mapping[str, Tensor]) -> list[int]:
    """Indices of the cross-attention layers in a file of recipe `cross`.

    Raises:
        ModelError: the file holds none.
    """
    found = {int(name.split(".")[1]) for name in trained if name.startswith(CROSS_PREFIX)}
    if not found:
        todo = "train it: recipe cross of train_projector"
        raise ModelError("no cross-attention layers in the trained file", "projector.safetensors", todo)
    return sorted(found)


def load_trained(model: Any, trained: Mapping[str, Tensor]) -> None:
    """Load what recipe `cross` trained.

    Raises:
        ModelError: other names or shapes than the model has.
    """
    expected = {
        prefix + name: tuple(value.shape)
        for prefix, module in trained_modules(model).items()
        for name, value in module.state_dict().items()
    }
    given = {name: tuple(value.shape) for name, value in trained.items()}
    if expected != given:
        odd = sorted(set(expected.items()) ^ set(given.items()))[:4]
        todo = "train it again: recipe cross of train_projector"
        raise ModelError(f"the trained file does not fit the model, e.g. {odd}", "projector.safetensors", todo)
    for prefix, module in trained_modules(model).items():
        part = {k.removeprefix(prefix): v.float() for k, v in trained.items() if k.startswith(prefix)}
        module.load_state_dict(part)


# --- the processor --------------------------------------------------------------------------------------------------


def mllama_processor(backbone_dir: Path, image_size: int) -> Any:
    """`MllamaProcessor` with the backbone's tokenizer; a space before `<|image|>` is swallowed, as in the llava one.

    It writes the tokenizer's own first token before every prompt, as the class does.
    """
    from transformers import MllamaProcessor

    tokenizer = _embedded.tokenizer_with_image(backbone_dir, RENAMED)
    return MllamaProcessor(
        image_processor=image_processor(image_size), tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )


def image_processor(image_size: int) -> Any:
    """Mllama's image processor on PIL: one tile, CLIP's resampling, mean and deviation.

    A picture that is not square is not squashed but padded with black, as this class does.
    """
    from transformers import MllamaImageProcessorPil

    clip = _embedded.image_processor(image_size)
    return MllamaImageProcessorPil(
        size={"height": image_size, "width": image_size},
        max_image_tiles=1,
        resample=clip.resample,
        image_mean=list(clip.image_mean),
        image_std=list(clip.image_std),
    )
