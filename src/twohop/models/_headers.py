"""What the headers of safetensors files say of a model's tensors; no weight is read."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twohop.errors import ModelError

HEADER = ".header"
"""Suffix of a file that holds only the first bytes of a safetensors file, header included."""
LONGEST = 100 * 2**20
"""Bytes of the longest header, as the format has it."""
_LAYER = re.compile(r"^(?:model\.)?(?:language_model\.|text_model\.)?(?:model\.)?layers\.(\d+)\.(.+)$")
"""A tensor of a decoder layer, as the families' checkpoints name it; towers' names start with other words."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Headers:
    """All tensors of a model's files by name."""

    tensors: Mapping[str, Tensor]
    faults: tuple[str, ...]
    """Files that are cut off, missing or no safetensors, a line each."""

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(t.shape) for t in self.tensors.values())

    def layers(self) -> dict[int, dict[str, str]]:
        """Of every decoder layer: the tensor's name within the layer -> its name in the files."""
        found: dict[int, dict[str, str]] = defaultdict(dict)
        for name in self.tensors:
            if match := _LAYER.match(name):
                found[int(match[1])][match[2]] = name
        return dict(sorted(found.items()))


def read_headers(folder: Path) -> Headers:
    """Headers of all safetensors files of a folder, or of files that hold nothing but a header."""
    tensors: dict[str, Tensor] = {}
    faults: list[str] = []
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob(f"*.safetensors{HEADER}")]):
        try:
            tensors |= _read(path)
        except ModelError as error:
            faults.append(f"{path.name.removesuffix(HEADER)}: {error.what}")
    return Headers(tensors, (*faults, *_missing(folder)))


def _read(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 0 < length <= min(LONGEST, size - 8):
            raise ModelError("is no safetensors file, or cut off")
        try:
            tree: dict[str, Any] = json.loads(f.read(length))
            tree.pop("__metadata__", None)
            name = path.name.removesuffix(HEADER)
            found = {k: Tensor(name, str(v["dtype"]), tuple(map(int, v["shape"]))) for k, v in tree.items()}
            end = max((int(v["data_offsets"][1]) for v in tree.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ModelError("is no safetensors file: its header cannot be read") from None
    if path.suffix != HEADER and size != 8 + length + end:
        raise ModelError(f"has {size} bytes, its header speaks of {8 + length + end}: cut off or altered")
    return found


def _missing(folder: Path) -> list[str]:
    """Shards that the index names and the folder lacks."""
    faults: list[str] = []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            faults.append(f"{index.name}: cannot be read")
            continue
        there = {p.name.removesuffix(HEADER) for p in folder.iterdir()}
        faults += [f"{name}: missing, though {index.name} names it" for name in names if name not in there]
    return faults
