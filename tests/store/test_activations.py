"""The activation store: whole, unaltered, resumable, the same bytes for the same content."""

import hashlib
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from twohop.errors import ArtifactError
from twohop.store import ActivationReader, ActivationWriter, Dataset

ATTRS = {
    "model": "tiny",
    "revision": "0" * 64,
    "sites": ["resid_post", "mlp_write"],
    "groups": {"entity": "tokens of the name", "last": "the predicting position"},
    "prompts_sha256": "1" * 64,
    "versions": {"torch": "2"},
    "lineage": {"step": "extract_activations"},
}
ROWS = tuple(f"flags:F{i}/capital" for i in range(5))
TEXT = Dataset("text", ROWS, ("mlp_write", "resid_post"), ("entity", "last"), (0, 1, 2), 8, (1, 2, 3, 2, 1))
PICTURES = Dataset("pictures", ("a", "b", "b#1"), ("resid_post",), ("image",), (-1, 0, 1, 2), 8)
CHUNK = 2


def values(seed: int, *shape: int) -> np.ndarray:
    # the width keeps every value a bfloat16, so that reading gives back exactly what was put
    return np.random.default_rng(seed).integers(1, 100, shape).astype(np.float32)


def pooled(layout: Dataset, rows: range) -> dict[tuple[str, str], np.ndarray]:
    return {
        (kind, group): np.stack([values(hash_of(layout.run, kind, group, i), len(layout.layers), 8) for i in rows])
        for kind in layout.kinds
        for group in layout.groups
    }


def tokens(layout: Dataset, rows: range) -> dict[str, list[np.ndarray]] | None:
    counts = layout.token_counts
    if counts is None:
        return None
    return {
        kind: [values(hash_of(layout.run, kind, "t", i), counts[i], len(layout.layers), 8) for i in rows]
        for kind in layout.kinds
    }


def hash_of(*parts: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])


def writer(folder: Path, **kwargs: Any) -> ActivationWriter:
    return ActivationWriter(folder / "a.h5", folder / "work", ATTRS, [TEXT, PICTURES], chunk_rows=CHUNK, **kwargs)


def fill(out: ActivationWriter) -> int:
    put = 0
    for layout in (TEXT, PICTURES):
        for rows in out.missing(layout.run):
            out.put(layout.run, rows, pooled(layout, rows), tokens(layout, rows))
            put += 1
    return put


@pytest.fixture
def path(tmp_path: Path) -> Path:
    out = writer(tmp_path)
    fill(out)
    out.finish()
    return tmp_path / "a.h5"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_back_what_was_put(tmp_path: Path, dtype: Any) -> None:
    out = writer(tmp_path, dtype=dtype)
    fill(out)
    out.finish()
    with ActivationReader(tmp_path / "a.h5") as reader:
        assert reader.runs() == ["pictures", "text"]
        assert reader.rows("text") == list(ROWS)
        assert reader.rows("pictures") == ["a", "b", "b#1"]
        assert reader.layers("pictures", "resid_post") == [-1, 0, 1, 2]
        assert reader.groups("text", "mlp_write") == ["entity", "last"]
        for layout in (TEXT, PICTURES):
            want = pooled(layout, range(len(layout.rows)))
            for (kind, group), array in want.items():
                for i, layer in enumerate(layout.layers):
                    got = reader.read(layout.run, kind, group, layer)
                    assert got.dtype == np.float32
                    np.testing.assert_array_equal(got, array[:, i])
        names = tokens(TEXT, range(5))
        assert names is not None
        for i, row in enumerate(ROWS):
            np.testing.assert_array_equal(
                reader.read_entity_tokens("text", "mlp_write", 2, row), names["mlp_write"][i][:, 2]
            )


def test_bfloat16_rounds_as_torch_does() -> None:
    import torch

    from twohop.store._activations import _decoded, _encoded

    x = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 10 ** np.random.default_rng(1).uniform(
        -30, 30, 4000
    )
    x = np.concatenate([x.astype(np.float32), np.float32([1 + 2**-8, 1 + 3 * 2**-8, -0.0])])
    want = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(_decoded(_encoded(x, "bfloat16"), "bfloat16"), want)


def chunk_places(path: Path) -> list[tuple[str, int, int]]:
    """(dataset, byte offset, bytes) of every stored chunk."""
    found: list[tuple[str, int, int]] = []
    with h5py.File(path) as file:

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                for i in range(node.id.get_num_chunks()):
                    info = node.id.get_chunk_info(i)
                    found.append((name, info.byte_offset, info.size))

        file.visititems(visit)
    return found


def test_h01_flipped_byte_in_every_chunk_is_an_error(path: Path) -> None:
    whole = path.read_bytes()
    places = chunk_places(path)
    assert len(places) > 50
    rng = np.random.default_rng(0)
    for name, offset, size in places:
        at = offset + int(rng.integers(size))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        with pytest.raises(ArtifactError, match="do not read back"):
            read_everything(path)
        assert name
    path.write_bytes(whole)
    read_everything(path)


def read_everything(path: Path) -> None:
    with ActivationReader(path) as reader:
        for run in reader.runs():
            kinds = ("resid_post",) if run == "pictures" else TEXT.kinds
            for kind in kinds:
                for group in reader.groups(run, kind):
                    for layer in reader.layers(run, kind):
                        reader.read(run, kind, group, layer)
                if run == "text":
                    for row in reader.rows(run):
                        for layer in reader.layers(run, kind):
                            reader.read_entity_tokens(run, kind, layer, row)


def test_h02_incomplete_file_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(ArtifactError, match="not complete"):
        ActivationReader(path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_h02_file_that_is_cut_off_is_refused(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError):
        ActivationReader(path).check_all()


def test_h02_row_count_must_fit(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["counts"] = '{"pictures": 3, "text": 6}'
    with pytest.raises(ArtifactError, match="rows, not 6"):
        ActivationReader(path)


def test_h03_old_file_stays_until_the_new_one_is_checked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    out = writer(path.parent)
    fill(out)

    def broken(self: ActivationReader) -> None:
        raise ArtifactError("does not read back")

    with monkeypatch.context() as patch:
        patch.setattr(ActivationReader, "check_all", broken)
        with pytest.raises(ArtifactError):
            out.finish()
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.endswith(".tmp")] == []


def test_h03_finish_refuses_while_a_chunk_is_missing(tmp_path: Path) -> None:
    out = writer(tmp_path)
    rows = out.missing("text")[0]
    out.put("text", rows, pooled(TEXT, rows), tokens(TEXT, rows))
    with pytest.raises(ArtifactError, match="missing"):
        out.finish()
    assert not (tmp_path / "a.h5").exists()


def crafted(path: Path, how: str) -> None:
    other = path.with_name("other.h5")
    with h5py.File(other, "w") as file:
        file["x"] = np.ones((5, 3, 8), dtype="<u2")
    with h5py.File(path, "r+") as file:
        group = file["text/mlp_write"]
        if how != "attribute":
            del group["last"]
        if how == "external link":
            group["last"] = h5py.ExternalLink("other.h5", "/x")
        elif how == "soft link":
            group["last"] = h5py.SoftLink("/text/mlp_write/entity")
        elif how == "external storage":
            raw = path.with_name("raw.bin")
            raw.write_bytes(bytes(5 * 3 * 8 * 2))
            group.create_dataset("last", (5, 3, 8), "<u2", external=[(str(raw), 0, 240)])
        elif how == "virtual":
            layout = h5py.VirtualLayout((5, 3, 8), "<u2")
            layout[:] = h5py.VirtualSource(str(other), "x", (5, 3, 8))
            group.create_virtual_dataset("last", layout)
        elif how == "huge claim":
            group.create_dataset("last", (5, 3, 1 << 40), "<u2", chunks=(2, 1, 8), fletcher32=True)
        elif how == "compressed":
            group.create_dataset(
                "last", data=np.ones((5, 3, 8), "<u2"), chunks=(2, 1, 8), fletcher32=True, compression="gzip"
            )
        elif how == "no checksum":
            group.create_dataset("last", data=np.ones((5, 3, 8), "<u2"), chunks=(2, 1, 8))
        elif how == "strings":
            group.create_dataset("last", data=np.array(["x"] * 5, dtype=object), dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("external link", "last is a link"),
        ("soft link", "last is a link"),
        ("external storage", "in another file"),
        ("virtual", "in another file"),
        ("huge claim", "declares 32985348833280 bytes and stores 0"),
        ("compressed", "another filter"),
        ("no checksum", "no checksum"),
        ("strings", "last has"),
    ],
)
def test_h04_file_from_elsewhere_is_refused(path: Path, how: str, why: str) -> None:
    crafted(path, how)
    with pytest.raises(ArtifactError, match=why):
        ActivationReader(path)


def test_h04_text_file_and_absent_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    for name in ("a.h5", "b.h5"):
        with pytest.raises(ArtifactError, match="cannot open"):
            ActivationReader(tmp_path / name)


WANTED = ["model", "revision", "sites", "groups", "prompts_sha256", "versions", "axes", "dtype", "counts", "format"]


@pytest.mark.parametrize("name", [*WANTED, "version"])
def test_h05_missing_attribute_is_refused(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
    with pytest.raises(ArtifactError, match=f"missing: {name}$|missing: {name}\n"):
        ActivationReader(path)


@pytest.mark.parametrize("name", ["axes", "dtype", "format", "version"])
def test_h05_wrong_attribute_is_refused(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = '"other"'
    with pytest.raises(ArtifactError, match=name):
        ActivationReader(path)


def test_h05_other_dtype_than_stored_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["dtype"] = '"float32"'
    with pytest.raises(ArtifactError, match="is uint16"):
        ActivationReader(path)


@pytest.mark.parametrize("name", ["model", "revision", "sites", "groups", "prompts_sha256", "versions"])
def test_h05_writer_wants_every_attribute(tmp_path: Path, name: str) -> None:
    attrs = {k: v for k, v in ATTRS.items() if k != name}
    with pytest.raises(ArtifactError, match=name):
        ActivationWriter(tmp_path / "a.h5", tmp_path, attrs, [TEXT])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_h06_not_a_finite_number_is_refused(tmp_path: Path, bad: float) -> None:
    out = writer(tmp_path)  # 3.4e38 is a finite float32 and rounds to infinity as bfloat16
    rows = out.missing("text")[0]
    data = pooled(TEXT, rows)
    data["mlp_write", "last"][1, 2, 3] = bad
    with pytest.raises(ArtifactError, match="flags:F1/capital"):
        out.put("text", rows, data, tokens(TEXT, rows))
    assert out.missing("text")[0] == rows


def test_h06_row_of_zeros_is_refused(tmp_path: Path) -> None:
    out = writer(tmp_path)
    rows = out.missing("text")[0]
    names = tokens(TEXT, rows)
    assert names is not None
    names["resid_post"][1][1, 2] = 0
    with pytest.raises(ArtifactError, match=r"all zeros, row flags:F1/capital"):
        out.put("text", rows, pooled(TEXT, rows), names)


def test_other_shape_is_refused(tmp_path: Path) -> None:
    out = writer(tmp_path)
    rows = out.missing("text")[0]
    data = pooled(TEXT, rows)
    data["mlp_write", "last"] = data["mlp_write", "last"][:, :2]
    with pytest.raises(ArtifactError, match="shape"):
        out.put("text", rows, data, tokens(TEXT, rows))


def test_unknown_names_are_refused_with_what_there_is(path: Path) -> None:
    with ActivationReader(path) as reader:
        for call in (
            lambda: reader.rows("txt"),
            lambda: reader.read("text", "attn_write", "last", 0),
            lambda: reader.read("text", "mlp_write", "image", 0),
            lambda: reader.read("text", "mlp_write", "last", 3),
            lambda: reader.read_entity_tokens("text", "mlp_write", 0, "nobody"),
            lambda: reader.read_entity_tokens("pictures", "resid_post", 0, "a"),
        ):
            with pytest.raises(ArtifactError):
                call()


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        out = writer(folder)
        fill(out)
        out.finish()
        time.sleep(1.1)  # a time stamp of whole seconds would differ
    assert (first / "a.h5").read_bytes() == (second / "a.h5").read_bytes()


def test_c06_resumes_per_chunk_with_the_same_bytes(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    killed = writer(folder)
    rows = killed.missing("text")
    for chunk in rows[:2]:
        killed.put("text", chunk, pooled(TEXT, chunk), tokens(TEXT, chunk))
    again = writer(folder)
    assert again.missing("text") == rows[2:]
    assert fill(again) == 3
    again.finish()
    assert (folder / "a.h5").read_bytes() == path.read_bytes()


def test_c06_damaged_chunk_is_made_again(tmp_path: Path) -> None:
    out = writer(tmp_path)
    fill(out)
    chunks = sorted((tmp_path / "work").rglob("*.chunk"))
    cut, flipped = chunks[0], chunks[1]
    cut.write_bytes(cut.read_bytes()[:100])
    data = flipped.read_bytes()
    flipped.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    again = writer(tmp_path)
    assert sum(len(again.missing(run)) for run in ("text", "pictures")) == 2


def test_c06_chunks_of_other_content_are_not_used(tmp_path: Path) -> None:
    fill(writer(tmp_path))
    other = ActivationWriter(
        tmp_path / "a.h5", tmp_path / "work", {**ATTRS, "revision": "2"}, [TEXT, PICTURES], chunk_rows=CHUNK
    )
    assert len(other.missing("text")) == 3


def test_whole_puts_together_what_another_writer_has_put(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "apart"
    maker = writer(folder)
    fill(maker)
    assert ActivationWriter.whole(folder / "a.h5", folder / "work") is None  # nobody left the plan
    maker.keep_plan()
    found = ActivationWriter.whole(folder / "a.h5", folder / "work")
    assert found is not None
    assert found.rows == {"text": 5, "pictures": 3}
    found.finish()
    assert (folder / "a.h5").read_bytes() == path.read_bytes()


def test_whole_is_none_while_a_chunk_is_missing_or_the_plan_is_another(tmp_path: Path) -> None:
    maker = writer(tmp_path)
    fill(maker)
    maker.keep_plan()
    (plan,) = (tmp_path / "work").rglob("plan.json")
    text = plan.read_text()
    for damaged in (text[:-9], text.replace('"revision": "000', '"revision": "100'), "[]"):
        plan.write_text(damaged)
        assert ActivationWriter.whole(tmp_path / "a.h5", tmp_path / "work") is None
    plan.write_text(text)
    next(iter((tmp_path / "work").rglob("*.chunk"))).unlink()
    assert ActivationWriter.whole(tmp_path / "a.h5", tmp_path / "work") is None
