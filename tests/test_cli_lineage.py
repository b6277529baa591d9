"""`twohop lineage` as a user meets it: answers on stdout, faults with exit code 2 and what to do."""

import json
from pathlib import Path

import pytest

from records import read_by, write_run
from twohop.cli import main


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = write_run(Path("results/make/m"), "aaaa1111", {"x.json": '{"n": {"value": 0.5}}'})
    write_run(Path("results/use"), "bbbb2222", {"y.json": "{}"}, read_by(made))
    return tmp_path


def _ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["lineage", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list"], "2 runs"),
        (["list", "--model", "m", "--since", "2025-01-01"], "1 runs"),
        (["view", "results/use/y.json"], "x.json <- make m  run aaaa1111"),
        (["view", "aaaa/x.json#/n/value"], "0.5  at /n/value of results/make/m/x.json"),
        (["find", "--step", "use"], "bbbb2222"),
        (["find", "--input", "results/make/m/x.json"], "results/use/y.json"),
        (["diff", "aaaa", "bbbb"], "seconds: 1.0 -> 1.0"),
        (["check"], "2 artifacts are what their records say"),
        (["check", "--cache"], "2 artifacts and 0 cached copies are what their records say"),
        (["render", "-o", "g.html"], "g.html: 2 runs"),
    ],
)
def test_an_answer_is_printed(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    code, out, _ = _ask(capsys, *words)
    assert code == 0
    assert told in out


JSON = ("list", "view bbbb", "find --step use", "diff aaaa bbbb", "find --input results/make/m/x.json")


@pytest.mark.parametrize("words", [text.split() for text in JSON], ids=" ".join)
def test_the_same_as_json(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, _ = _ask(capsys, *words, "--json")
    assert code == 0
    assert json.loads(out)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["view", "cccc"], "no run has this id"),
        (["view", "results/nope.json"], "no such file"),
        (["view", "aaaa/x.json#/m"], "there is: n"),
        (["find"], "nothing to look for"),
        (["find", "--input", "nope"], "no record reads or wrote it"),
        (["find", "--step", "x", "--since", "soon"], "is no time"),
        (["diff", "aaaa", "HEAD:results/x"], "git cannot show it"),
        (["export", "results"], "not an empty folder"),
        (["export", "crate"], "no finished run to export"),
    ],
)
def test_a_fault_has_exit_code_2_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    code, _, err = _ask(capsys, *words)
    assert code == 2
    assert told in err
    assert "  do:" in err


def test_a01_a04_check_names_each_fault_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results/make/m/x.json").write_text('{"n": {"value": 0.6}}')
    Path("results/stray.txt").write_text("?")
    code, _, err = _ask(capsys, "check")
    assert code == 2
    assert err.splitlines()[:3] == [
        "error: results/make/m/x.json: its bytes differ from the recorded sha256",
        "results/stray.txt: no record names this file",
        "results/use: out of date: input results/make/m/x.json changed",
    ]


def test_a03_check_names_a_bad_cached_copy(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(".dvc/cache/files/md5/ab/cdef")
    file.parent.mkdir(parents=True)
    file.write_text("x")
    assert _ask(capsys, "check")[0] == 0
    code, _, err = _ask(capsys, "check", "--cache")
    assert code == 2
    assert f"{file}: its bytes differ from its name" in err
    assert "dvc fetch" in err
