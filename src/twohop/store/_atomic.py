"""Files appear whole or not at all: temporary name beside the target, fsync, rename (promises A, C, H3)."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """A hidden name in the target's folder, renamed onto `path` only after a clean exit and an fsync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # pids repeat among hosts
    try:
        yield tmp
        _fsync(tmp)
        tmp.replace(path)
        _fsync(path.parent)
    finally:
        tmp.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as tmp:
        tmp.write_bytes(data)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks of 1 MiB."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
