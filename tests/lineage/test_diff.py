"""Two runs differ where they differ, and the first run that differed is named."""

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from records import BLANK, read_by, write_run
from twohop.errors import ArtifactError, TwohopError
from twohop.lineage import Change, ModelUse, diff, read_book, record_at


@pytest.fixture(autouse=True)
def _in_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _chain(tag: str, seed: int, code: str = "c") -> None:
    """source -> middle -> last, once more in the same place."""
    source = write_run(
        Path("results/source"), f"{tag}-source", {"s.bin": f"s{seed}"}, params={"source": {"seed": seed, "n": 1}}
    )
    middle = write_run(Path("results/middle"), f"{tag}-middle", {"m.bin": f"m{seed}"}, read_by(source))
    write_run(Path("results/last"), f"{tag}-last", {"l.bin": f"l{seed}"}, read_by(middle), code={"a.py": code})


def test_equal_keys_are_no_difference() -> None:
    a = replace(BLANK, seconds=2.0)
    b = replace(a, run_id="run-2", versions={"torch": "2"}, host={"cores": 4}, seconds=4.0)
    found = diff(a, b, read_book())
    assert not found.counts
    assert found.versions == (Change("torch", "(none)", '"2"'),)
    assert found.host == (Change("cores", "(none)", "4"),)
    assert found.seconds == (2.0, 4.0)


def test_params_code_and_models_are_named_by_key() -> None:
    model = ModelUse("m", "random", "r1", opened=True, dtype="float32")
    a = replace(BLANK, params={"s": {"seed": 0, "old": 1}}, code={"a.py": "1" * 64}, models=(model,), key="a")
    b = replace(
        BLANK, params={"s": {"seed": 1}}, code={"a.py": "2" * 64}, models=(replace(model, revision="r2"),), key="b"
    )
    found = diff(a, b, read_book())
    assert found.counts
    assert found.params == (Change("s.old", "1", "(none)"), Change("s.seed", "0", "1"))
    assert [c.key for c in found.code] == ["a.py"]
    assert found.models == (Change("m.revision", '"r1"', '"r2"'),)


def test_a_differing_input_is_followed_to_the_run_that_first_differed() -> None:
    _chain("aaaa", 0)
    _chain("bbbb", 1)
    book = read_book()
    (change,) = diff(book.all["aaaa-last"], book.all["bbbb-last"], book).inputs
    assert change.path == "results/middle/m.bin"
    (cause,) = change.causes
    assert (cause.a.split()[1], cause.changes) == ("source", (Change("source.seed", "0", "1"),))


def test_a_file_that_differs_without_a_reason_is_said() -> None:
    _chain("aaaa", 0)
    first = read_book().all["aaaa-source"]
    other = write_run(Path("results/source"), "bbbb-source", {"s.bin": "other"}, params=first.params)
    a = write_run(Path("results/last"), "aaaa-late", {"l.bin": "1"}, read_by(first))
    b = write_run(Path("results/last"), "bbbb-late", {"l.bin": "2"}, read_by(other))
    (change,) = diff(a, b, read_book()).inputs
    assert [c.changes for c in change.causes] == [()]


def test_inputs_of_two_models_are_paired_by_name() -> None:
    a, b = (write_run(Path(f"results/make/{m}"), f"{m}-make", {"x.bin": m}) for m in ("one", "two"))
    found = diff(*(replace(BLANK, inputs=read_by(r), key=r.run_id) for r in (a, b)), read_book())
    assert [c.path for c in found.inputs] == ["results/make/one/x.bin -> results/make/two/x.bin"]


def _git(*words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *words], check=True, capture_output=True)


def _commit_run() -> Path:
    """A run whose record is in DVC's cache and whose dvc.lock is in git; gives the cached object."""
    data = Path("results/last/lineage.json").read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    cached = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(data)
    outs = f"- path: results/last/lineage.json\n      md5: {md5}\n"
    Path("dvc.lock").write_text(f"stages:\n  last:\n    cmd: x\n    outs:\n    {outs}")
    _git("init", "-q")
    _git("add", "dvc.lock")
    _git("commit", "-qm", "one")
    return cached


def test_a_run_of_another_revision_comes_from_dvcs_cache() -> None:
    _chain("aaaa", 0)
    cached = _commit_run()
    _chain("bbbb", 1, code="d")
    book = read_book(history=False)
    old = record_at("HEAD:results/last/l.bin", book)
    assert old.run_id == "aaaa-last"
    assert record_at("HEAD:results/last", book) == old
    assert [c.key for c in diff(old, record_at("results/last/l.bin", book), book).code] == ["a.py"]
    cached.unlink()
    with pytest.raises(ArtifactError, match="DVC's cache lacks the record") as caught:
        record_at("HEAD:results/last/l.bin", book)
    assert "dvc fetch" in str(caught.value)


def test_a_revision_or_path_that_is_not_there_is_refused() -> None:
    _chain("aaaa", 0)
    _commit_run()
    with pytest.raises(TwohopError, match="git cannot show it"):
        record_at("nosuch:results/last/l.bin", read_book())
    with pytest.raises(ArtifactError, match="has no results/x/lineage"):
        record_at("HEAD:results/x/l.bin", read_book())
    with pytest.raises(TwohopError, match="git cannot show it"):
        record_at("--output=x:results/last/l.bin", read_book())
