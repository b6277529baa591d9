"""The record: it survives the file, and belongs to the files that it names."""

from pathlib import Path

from records import write_run
from twohop.lineage import read_record, record_of


def test_a_record_survives_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = write_run(Path("a"), "run-a", {"x.bin": "x"})
    assert read_record(tmp_path / "a/lineage.json") == record
    assert record_of(tmp_path / "a/x.bin") == record
    assert record_of(tmp_path / "a/other.bin") is None
