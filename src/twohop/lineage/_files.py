"""Small JSON state files of the engines' bookkeeping (artifacts go through `twohop.store`)."""

import json
import os
from pathlib import Path
from typing import Any, cast


def read_state(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when the file is absent or cut off (state can always be made again)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def write_state(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object in one rename."""
    write_text(path, json.dumps(value, sort_keys=True))


def write_text(path: Path, text: str) -> None:
    """Write a small text file in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tmp.write_text(text, encoding="utf-8")
    tmp.replace(path)
