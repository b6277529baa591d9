"""Activations in HDF5: written in chunks that survive a kill, refused unless whole, unaltered and complete.

Layout of a file, one group per run (`text`, `image`, `pictures`):

- `<run>/<kind>/<group>`: (row, layer, d_model), pooled over the token group; chunk (chunk_rows, 1, d_model), so that
  one layer of all rows is one read;
- `<run>/<kind>/entity_tokens`: (token, layer, d_model), the names' tokens of all rows one after the other;
- `<run>/rows` (ids), `<run>/layers`, `<run>/offsets` (first token of every row, and the end);
- `<run>/about/<column>`: a text per row (entity, style, question ...).

bfloat16 is stored as its upper 16 bits (uint16). Every dataset carries a Fletcher-32 checksum, nothing is compressed,
and no time stamp is written: the same content gives the same bytes.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import h5py
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from twohop.errors import ArtifactError
from twohop.store._atomic import atomic_path, write_bytes

FORMAT, VERSION = "twohop-activations", 2
LIBVER = ("v110", "v110")
ENTITY_TOKENS = "entity_tokens"
ABOUT = "about"
PLAN = "plan.json"
"""Attributes and layout of the file that the chunks beside it belong to."""
REQUIRED = ("model", "revision", "sites", "groups", "prompts_sha256", "versions", "lineage")
"""Attributes that the writer's caller gives; `axes`, `dtype`, `counts`, `format`, `version`, `complete` are added."""
AXES = "row layer d_model"
REMAKE = "make it again: snakemake --cores all"
STORED: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
"""Type on disk of every dtype."""
METADATA_BYTES = 1 << 16
"""A dataset of ids or offsets may declare at most this much more than the whole file holds."""

Dtype = Literal["float32", "float16", "bfloat16"]
Pooled = Mapping[tuple[str, str], Float32[np.ndarray, "row layer d_model"]]
"""(kind, token group) -> values."""
Tokens = Mapping[str, Sequence[Float32[np.ndarray, "_ layer d_model"]]]
"""kind -> one array per row: the tokens of its name."""


@dataclass(frozen=True)
class Dataset:
    """What one run of a file holds."""

    run: str
    rows: tuple[str, ...]
    """Ids, in file order."""
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    layers: tuple[int, ...]
    d_model: int
    token_counts: tuple[int, ...] | None = None
    """Tokens of each row's name; None when the run keeps no single tokens."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """What the rows are, so that the file can be read without other tables: name -> text per row."""


class ActivationWriter:
    """Collects a file chunk by chunk; `finish` puts it together.

    Finished chunks lie in `work` as files of their own with a checksum, so that a later call with the same layout goes
    on where a killed one stopped (promise C6). At most one chunk is in memory.
    """

    def __init__(
        self,
        path: Path,
        work: Path,
        attrs: Mapping[str, Any],
        layout: Sequence[Dataset],
        dtype: Dtype = "bfloat16",
        chunk_rows: int = 32,
    ) -> None:
        missing = [name for name in REQUIRED if not attrs.get(name)]
        if missing:
            raise ArtifactError(f"attribute(s) missing: {', '.join(missing)}", str(path), "give them to the writer")
        self._path, self._attrs, self._chunk_rows = path, dict(attrs), chunk_rows
        self._dtype: Dtype = dtype
        self._layout = {d.run: d for d in layout}
        key = _digest([self._attrs, [asdict(d) for d in layout], dtype, chunk_rows, VERSION])
        self._work = work / f"chunks-{key[:16]}"

    @classmethod
    def whole(cls, path: Path, work: Path) -> "ActivationWriter | None":
        """The writer whose chunks are all in `work`, whoever put them there; None while one is missing."""
        for plan in sorted(work.glob(f"chunks-*/{PLAN}")):
            writer = cls._planned(path, work, plan)
            if writer is not None and not any(writer.missing(run) for run in writer.rows):
                return writer
        return None

    @classmethod
    def _planned(cls, path: Path, work: Path, plan: Path) -> "ActivationWriter | None":
        """The writer that wrote a plan; None when the plan is not the one that its folder is named after."""
        try:
            tree = json.loads(plan.read_bytes())
            layout = [_layout(d) for d in tree["layout"]]
            writer = cls(path, work, tree["attrs"], layout, tree["dtype"], tree["chunk_rows"])
        except (ValueError, TypeError, KeyError):
            return None
        return writer if writer._work == plan.parent else None

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows per run."""
        return {run: len(d.rows) for run, d in self._layout.items()}

    def keep_plan(self) -> None:
        """Leave in `work` what `whole` needs to put the chunks together without a model."""
        tree = {
            "attrs": self._attrs,
            "layout": [asdict(d) for d in self._layout.values()],
            "dtype": self._dtype,
            "chunk_rows": self._chunk_rows,
        }
        write_bytes(self._work / PLAN, json.dumps(tree, ensure_ascii=False).encode())

    def missing(self, run: str) -> list[range]:
        """Rows of the chunks that are still to be put, in order."""
        n = len(self._layout[run].rows)
        chunks = [range(i, min(i + self._chunk_rows, n)) for i in range(0, n, self._chunk_rows)]
        return [c for c in chunks if _read_chunk(self._chunk(run, c.start)) is None]

    def put(self, run: str, rows: range, pooled: Pooled, tokens: Tokens | None = None) -> None:
        """Keep one chunk (one of `missing`).

        Raises:
            ArtifactError: an array is missing, has another shape, holds NaN or infinity, or a row of zeros (H6).
        """
        layout = self._layout[run]
        arrays: dict[str, NDArray[Any]] = {}
        for kind in layout.kinds:
            for group in layout.groups:
                at = f"{run}/{kind}/{group}"
                shape = (len(rows), len(layout.layers), layout.d_model)
                arrays[f"{kind}/{group}"] = self._stored(pooled[kind, group], shape, [layout.rows[i] for i in rows], at)
            if layout.token_counts is not None:
                given = (tokens or {})[kind]
                for i, values in zip(rows, given, strict=True):
                    shape = (layout.token_counts[i], len(layout.layers), layout.d_model)
                    at, names = f"{run}/{kind}/{ENTITY_TOKENS}", [layout.rows[i]] * len(values)
                    arrays[f"{kind}/{ENTITY_TOKENS}/{i}"] = self._stored(values, shape, names, at)
        _write_chunk(self._chunk(run, rows.start), arrays)

    def finish(self) -> None:
        """Put the chunks together, close, re-open, check, rename.

        Raises:
            ArtifactError: a chunk was never put, or the file does not read back.
        """
        for run in self._layout:
            if self.missing(run):
                raise ArtifactError(
                    f"{len(self.missing(run))} chunk(s) of run {run} are missing", str(self._path), REMAKE
                )
        with atomic_path(self._path) as tmp:
            self._assemble(tmp)
            with ActivationReader(tmp) as reader:
                reader.check_all()

    def _chunk(self, run: str, start: int) -> Path:
        return self._work / f"{run}-{start:08d}.chunk"

    def _stored(self, values: Any, shape: tuple[int, ...], names: Sequence[str], at: str) -> NDArray[Any]:
        """Values as they lie on disk, after the checks of H6."""
        array = np.asarray(values, dtype=np.float32)
        if array.shape != shape:
            raise ArtifactError(f"values have shape {array.shape}, not {shape}", at, "give (row, layer, d_model)")
        stored = _encoded(array, self._dtype)
        back = _decoded(stored, self._dtype)
        if not np.isfinite(back).all():
            bad = names[int(np.argwhere(~np.isfinite(back))[0][0])]
            raise ArtifactError(
                f"NaN or infinity as {self._dtype}, row {bad}", at, "try extract_activations.dtype: float32"
            )
        zero = ~back.any(axis=-1)
        if zero.any():
            row, layer = (int(x) for x in np.argwhere(zero)[0])
            raise ArtifactError(f"all zeros, row {names[row]}, layer number {layer}", at, "nothing was captured there")
        return stored

    def _assemble(self, path: Path) -> None:
        with _new_file(path) as file:
            for layout in self._layout.values():
                self._write_run(file, layout)
            counts = {run: len(d.rows) for run, d in self._layout.items()}
            attrs = {**self._attrs, "axes": AXES, "dtype": self._dtype, "format": FORMAT, "version": VERSION}
            for name, value in sorted(attrs.items()):
                file.attrs[name] = _text(value)
            file.flush()
            file.attrs["counts"] = _text(counts)
            file.attrs["complete"] = "yes"  # last: a reader refuses a file without it (H2)

    def _write_run(self, file: h5py.File, layout: Dataset) -> None:
        group = _new_group(file, layout.run)
        ids = np.array([r.encode() for r in layout.rows], dtype=np.bytes_)
        _small(group, "rows", ids)
        about = _new_group(group, ABOUT)
        for name, texts in layout.columns.items():
            _small(about, name, np.array([t.encode() or b" " for t in texts], dtype=np.bytes_))
        _small(group, "layers", np.array(layout.layers, dtype="<i8"))
        kinds = {kind: _new_group(group, kind) for kind in layout.kinds}
        offsets = np.concatenate([[0], np.cumsum(layout.token_counts or (), dtype=np.int64)]).astype("<i8")
        if layout.token_counts is not None:
            _small(group, "offsets", offsets)
        for kind in layout.kinds:
            for name in layout.groups:
                self._create(kinds[kind], name, len(layout.rows), layout)
            if layout.token_counts is not None:
                self._create(kinds[kind], ENTITY_TOKENS, int(offsets[-1]), layout)
        for start in range(0, len(layout.rows), self._chunk_rows):
            self._fill(kinds, layout, start, offsets)

    def _create(self, group: h5py.Group, name: str, n: int, layout: Dataset) -> None:
        group.create_dataset(
            name,
            shape=(n, len(layout.layers), layout.d_model),
            dtype=STORED[self._dtype],
            chunks=(min(self._chunk_rows, n), 1, layout.d_model),
            fletcher32=True,
            track_times=False,
        )

    def _fill(self, kinds: Mapping[str, h5py.Group], layout: Dataset, start: int, offsets: NDArray[np.int64]) -> None:
        arrays = _read_chunk(self._chunk(layout.run, start))
        if arrays is None:
            raise ArtifactError(f"chunk {start} of run {layout.run} vanished", str(self._work), REMAKE)
        stop = min(start + self._chunk_rows, len(layout.rows))
        for kind, group in kinds.items():
            for name in layout.groups:
                cast("h5py.Dataset", group[name])[start:stop] = arrays[f"{kind}/{name}"]
            if layout.token_counts is not None:
                tokens = np.concatenate([arrays[f"{kind}/{ENTITY_TOKENS}/{i}"] for i in range(start, stop)])
                cast("h5py.Dataset", group[ENTITY_TOKENS])[int(offsets[start]) : int(offsets[stop])] = tokens


class ActivationReader:
    """An open activation file; a context manager.

    Raises:
        ArtifactError: absent, cut off, incomplete, made by something else, or not what its attributes say.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot open the activations: {error}", str(path), REMAKE) from None
        try:
            with self._reading():
                self.attrs = self._check_attributes()
                self._check_links(self._file, path.stat().st_size)
                self._dtype: Dtype = cast("Dtype", self.attrs["dtype"])
                self._rows = {run: self._read_rows(run, n) for run, n in self.attrs["counts"].items()}
        except ArtifactError:
            self._file.close()
            raise

    def __enter__(self) -> "ActivationReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def runs(self) -> list[str]:
        """Runs of the file."""
        return list(self._rows)

    def rows(self, run: str) -> list[str]:
        """Ids of a run, in file order."""
        return list(self._of(self._rows, run, "run"))

    def layers(self, run: str, kind: str) -> list[int]:
        """Layers of a run's site kind; -1 is the first layer's input."""
        self._node(run, kind)
        with self._reading():
            return [int(x) for x in self._dataset(f"{run}/layers")[:]]

    def groups(self, run: str, kind: str) -> list[str]:
        """Token groups of a run's site kind."""
        return sorted(set(cast("h5py.Group", self._node(run, kind))) - {ENTITY_TOKENS})

    def about(self, run: str) -> dict[str, list[str]]:
        """What the rows are: column -> text per row, in file order."""
        self._of(self._rows, run, "run")
        with self._reading():
            names = sorted(cast("h5py.Group", self._file[f"{run}/{ABOUT}"]))
            return {n: [bytes(t).decode().strip() for t in self._dataset(f"{run}/{ABOUT}/{n}")[:]] for n in names}

    def read(self, run: str, kind: str, group: str, layer: int) -> Float32[np.ndarray, "row d_model"]:
        """One layer of all rows.

        Raises:
            ArtifactError: not in the file, or altered bytes (H1).
        """
        index = self._layer(run, kind, layer)
        with self._reading():
            return _decoded(self._dataset(f"{run}/{kind}/{group}")[:, index], self._dtype)

    def read_entity_tokens(self, run: str, kind: str, layer: int, row_id: str) -> Float32[np.ndarray, "token d_model"]:
        """The name's tokens of one row, unpooled.

        Raises:
            ArtifactError: not in the file, or altered bytes.
        """
        index = self._layer(run, kind, layer)
        rows = self.rows(run)
        if row_id not in rows:
            raise ArtifactError(f"no row {row_id!r} in run {run}", str(self._path), REMAKE)
        with self._reading():
            start, stop = (int(x) for x in self._dataset(f"{run}/offsets")[rows.index(row_id) :][:2])
            return _decoded(self._dataset(f"{run}/{kind}/{ENTITY_TOKENS}")[start:stop, index], self._dtype)

    def check_all(self) -> None:
        """Read every chunk of every dataset, so that each checksum is compared.

        Raises:
            ArtifactError: a chunk does not have its checksum.
        """
        with self._reading():
            for dataset in _datasets(self._file):
                step = max(1, dataset.chunks[0])
                for start in range(0, dataset.shape[0], step):
                    dataset[start : start + step]

    @contextlib.contextmanager
    def _reading(self) -> Generator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise ArtifactError(f"the activations do not read back: {error}", str(self._path), REMAKE) from None

    def _check_attributes(self) -> dict[str, Any]:
        """Attributes of H5; the complete marker first (H2)."""
        raw = self._file.attrs
        if raw.get("complete") != "yes":
            raise ArtifactError("the file is not complete: its writer did not come to the end", str(self._path), REMAKE)
        wanted = (*REQUIRED, "axes", "dtype", "counts", "format", "version")
        missing = [name for name in wanted if name not in raw]
        if missing:
            raise ArtifactError(f"attribute(s) missing: {', '.join(missing)}", str(self._path), REMAKE)
        attrs = {name: json.loads(cast("str", raw[name])) for name in wanted}
        expected = {"format": FORMAT, "version": VERSION, "axes": AXES}
        for name, value in expected.items():
            if attrs[name] != value:
                raise ArtifactError(f"attribute {name} is {attrs[name]!r}, not {value!r}", str(self._path), REMAKE)
        if attrs["dtype"] not in STORED:
            raise ArtifactError(f"attribute dtype is {attrs['dtype']!r}", str(self._path), REMAKE)
        return attrs

    def _check_links(self, group: h5py.Group, size: int) -> None:
        """Refuse whatever points out of the file or claims more bytes than it holds (H4)."""
        for name in group:
            at = f"{(group.name or '').rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ArtifactError(f"{at} is a link", str(self._path), "do not use files from elsewhere")
            node = group[name]
            if isinstance(node, h5py.Group):
                self._check_links(node, size)
            elif isinstance(node, h5py.Dataset):
                self._check_dataset(node, at, size)
            else:
                raise ArtifactError(
                    f"{at} is a {type(node).__name__}", str(self._path), "do not use files from elsewhere"
                )

    def _check_dataset(self, dataset: h5py.Dataset, at: str, size: int) -> None:
        plist: Any = dataset.id.get_create_plist()
        filters = [int(plist.get_filter(i)[0]) for i in range(plist.get_nfilters())]
        stored = int(dataset.id.get_storage_size())
        fault = ""
        if dataset.is_virtual or plist.get_external_count():
            fault = "keeps its numbers in another file"
        elif filters != [h5py.h5z.FILTER_FLETCHER32]:
            fault = "has no checksum or another filter"
        elif dataset.dtype.kind not in "iufS":
            fault = f"has type {dataset.dtype}"
        elif not int(dataset.nbytes) <= stored <= size:
            fault = f"declares {int(dataset.nbytes)} bytes and stores {stored}"
        if fault:
            raise ArtifactError(f"{at} {fault}", str(self._path), REMAKE)

    def _read_rows(self, run: str, n: int) -> list[str]:
        rows = [bytes(r).decode() for r in self._dataset(f"{run}/rows")[:]]
        for kind in (k for k, node in cast("h5py.Group", self._file[run]).items() if isinstance(node, h5py.Group)):
            if kind == ABOUT:
                continue
            for name, dataset in cast("h5py.Group", self._file[f"{run}/{kind}"]).items():
                if name != ENTITY_TOKENS and dataset.shape[0] != n:
                    raise ArtifactError(
                        f"{run}/{kind}/{name} has {dataset.shape[0]} rows, not {n}", str(self._path), REMAKE
                    )
                if dataset.dtype != STORED[self._dtype]:
                    raise ArtifactError(f"{run}/{kind}/{name} is {dataset.dtype}", str(self._path), REMAKE)
        if len(rows) != n:
            raise ArtifactError(f"{run} has {len(rows)} ids, not {n}", str(self._path), REMAKE)
        return rows

    def _of(self, table: Mapping[str, Any], key: str, what: str) -> Any:
        if key not in table:
            raise ArtifactError(
                f"no {what} {key!r}; the file has {', '.join(table)}", str(self._path), "check the params"
            )
        return table[key]

    def _node(self, run: str, kind: str) -> Any:
        self._of(self._rows, run, "run")
        return self._of(cast("Any", self._file[run]), kind, "site kind")

    def _dataset(self, name: str) -> Any:
        if name not in self._file:
            raise ArtifactError(f"no {name} in the file", str(self._path), "check extract_activations in params.yaml")
        return self._file[name]

    def _layer(self, run: str, kind: str, layer: int) -> int:
        layers = self.layers(run, kind)
        if layer not in layers:
            raise ArtifactError(
                f"no layer {layer} in {run}/{kind}; it has {layers}", str(self._path), "check the params"
            )
        return layers.index(layer)


# --- bytes ------------------------------------------------------------------------------------------------------------


def _encoded(values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """Float32 as it lies on disk; bfloat16 rounds half to even."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # an overflow is refused as an infinity right after
            return values.astype(STORED[dtype])
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint32)
    return np.where(np.isfinite(values), rounded, 0x7FC0).astype(STORED[dtype])


def _decoded(stored: NDArray[Any], dtype: Dtype) -> NDArray[np.float32]:
    if dtype != "bfloat16":
        return stored.astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _layout(tree: Mapping[str, Any]) -> Dataset:
    """A `Dataset` as JSON gives it back: lists for tuples."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items()}
    fields["columns"] = {name: tuple(texts) for name, texts in tree["columns"].items()}
    return Dataset(**fields)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _digest(tree: Any) -> str:
    return hashlib.sha256(_text(tree).encode()).hexdigest()


def _write_chunk(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name.replace("/", "|"): a for name, a in arrays.items()})
    data = buffer.getvalue()
    write_bytes(path, hashlib.sha256(data).digest() + data)


def _read_chunk(path: Path) -> dict[str, NDArray[Any]] | None:
    """A finished chunk; None when it is absent or damaged (it is then made again)."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as arrays:
        return {name.replace("|", "/"): arrays[name] for name in arrays.files}


@contextlib.contextmanager
def _new_file(path: Path) -> Generator[h5py.File]:
    """A new HDF5 file whose objects carry no time stamps (h5py's own `File` gives the root group one)."""
    creation: Any = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access: Any = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    low: Any = h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, creation, access)
    with h5py.File(low) as file:
        yield file


def _new_group(parent: h5py.Group, name: str) -> h5py.Group:
    creation: Any = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    creation.set_obj_track_times(False)
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=creation))


def _small(group: h5py.Group, name: str, values: NDArray[Any]) -> None:
    group.create_dataset(name, data=values, chunks=values.shape, fletcher32=True, track_times=False)


def _datasets(group: h5py.Group) -> Iterator[Any]:
    for node in group.values():
        if isinstance(node, h5py.Group):
            yield from _datasets(node)
        else:
            yield node
