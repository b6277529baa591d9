"""Parquet and JSON tables: schema-checked both ways, written atomically, the same bytes for the same content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from twohop.errors import ArtifactError
from twohop.store._atomic import atomic_path, write_bytes

if TYPE_CHECKING:
    Schema = Mapping[str, pl.DataType]
else:
    Schema = Mapping[str, object]  # the run-time checker of the tests cannot take polars' metaclass


def write_table(path: Path, table: pl.DataFrame, schema: Schema) -> None:
    """Check a table against its schema and write it as Parquet.

    Raises:
        ArtifactError: a column is missing, superfluous or of another type.
    """
    _check(table, schema, path)
    with atomic_path(path) as tmp:
        table.select(list(schema)).write_parquet(tmp, compression="zstd", statistics=False)


def read_table(path: Path, schema: Schema) -> pl.DataFrame:
    """Read a Parquet table and check it against its schema.

    Raises:
        ArtifactError: the file is absent, cut off, or has other columns.
    """
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ArtifactError(
            f"cannot read the table: {error}", str(path), "make it again: snakemake --cores all"
        ) from None
    _check(table, schema, path)
    return table


def _check(table: pl.DataFrame, schema: Schema, path: Path) -> None:
    want, have = pl.Schema(schema), table.schema
    faults = [f"no column {c}" for c in want if c not in have]
    faults += [f"unexpected column {c}" for c in have if c not in want]
    faults += [f"column {c} is {have[c]}, not {want[c]}" for c in want if c in have and have[c] != want[c]]
    if faults:
        raise ArtifactError("table does not fit its schema: " + "; ".join(faults), str(path))


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys; NaN and infinities are refused."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: the file is absent or cut off.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot read the JSON: {error}", str(path), "make it again: snakemake --cores all"
        ) from None
