"""What would have to go with a picture, a file, a hash."""

import zipfile
from pathlib import Path

import pytest

from twohop.errors import ArtifactError
from twohop.lineage import read_book, sha256
from twohop.provenance import find_input, found_lines
from twohop.store import read_table, schemas

PICTURE = "flags:AA/noto_original"


def _row():
    return read_table(Path("results/fetch_images/manifest.parquet"), schemas.MANIFEST).row(0, named=True)


def _find(text: str):
    return find_input(text, read_book())


def test_a_picture_is_found_by_id_file_name_hash_and_content(tmp_path: Path) -> None:
    row = _row()
    (Path("flag.png")).write_bytes(_bytes_of(row["file"]))
    for text in (PICTURE, row["file"], f"data/images/{row['file']}", row["sha256"], row["sha256"][:12], "flag.png"):
        found = _find(text)
        assert found.picture is not None
        assert found.picture.picture_id == PICTURE
        assert {r.step for r in found.runs} == {"build_questions", "plot_figures"}


def _bytes_of(name: str) -> bytes:
    with zipfile.ZipFile("results/fetch_images/pictures.zip") as z:
        return z.read(next(n for n in z.namelist() if n.endswith(name)))


def test_a_picture_takes_its_questions_and_all_that_follows_with_it() -> None:
    text = "\n".join(found_lines(_find(PICTURE)))
    assert "held by results/fetch_images/pictures.zip" in text
    assert "results/plot_figures/summary.json" in text
    assert "2 artifacts of 2 runs rest on it" in text
    assert "questions that show it: late: flags:AA/capital" in text
    assert "curate_entities" in text
    assert "`dvc gc --workspace --cloud`" in text
    assert "no question shows it" in "\n".join(found_lines(_find("flags:CC/noto_original")))


def test_a_file_and_its_hash_lead_to_the_same_runs() -> None:
    path = "results/curate_entities/facts.parquet"
    by_path, by_hash = _find(path), _find(sha256(Path(path))[:16])
    assert by_path.runs == by_hash.runs
    assert [r.step for r in by_path.runs] == ["fetch_images", "build_questions", "plot_figures"]


def test_a_file_of_the_repository_is_known_by_the_path_that_was_read() -> None:
    assert _find("data/models/late/projector.safetensors").runs[0].step == "prepare_model"


@pytest.mark.parametrize("text", ["nothing.txt", "ffffffffffff", "abc"])
def test_an_unknown_input_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="no record reads or wrote it"):
        _find(text)


def test_a_beginning_of_several_hashes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("results/fetch_images/manifest.parquet").unlink()
    monkeypatch.setattr("twohop.provenance._inputs._is_hash", lambda text: text == "")
    with pytest.raises(ArtifactError, match="files have a sha256 that begins so"):
        _find("")


def test_json_holds_runs_and_questions() -> None:
    found = _find(PICTURE).as_json()
    assert [r["step"] for r in found["runs"]] == ["build_questions", "plot_figures"]
    assert list(found["questions"]) == [("late", "flags:AA/capital")]


def test_without_pictures_files_are_still_found() -> None:
    Path("results/fetch_images/manifest.parquet").unlink()
    assert _find("results/curate_entities/facts.parquet").picture is None
