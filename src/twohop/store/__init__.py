"""HDF5 activations, tables, atomic writes, checksums; the only room that opens HDF5."""

from twohop.store import schemas
from twohop.store._activations import ActivationReader, ActivationWriter, Dataset
from twohop.store._atomic import atomic_path, sha256_file, write_bytes
from twohop.store._tables import read_json, read_table, write_json, write_table

__all__ = [
    "ActivationReader",
    "ActivationWriter",
    "Dataset",
    "atomic_path",
    "read_json",
    "read_table",
    "schemas",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_table",
]
