"""Ids mean what they say; walks lead back and forth."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from records import read_by, write_run
from twohop.errors import ArtifactError, TwohopError
from twohop.lineage import (
    Book,
    InputFile,
    Target,
    downstream,
    follow,
    parse_since,
    read_book,
    read_value,
    resolve,
    select,
    walk,
)

SUMMARY = {"a/b": {"value": 0.35}, "list": [1, {"~": 2}], "n": 3}


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """source -> middle -> last; the last holds numbers."""
    monkeypatch.chdir(tmp_path)
    source = write_run(Path("results/source"), "aaaa1111", {"s.bin": "s"}, started="2026-01-01T00:00:00+00:00")
    own = InputFile("own", "own.txt", "0" * 64, None)
    middle = write_run(Path("results/middle/m"), "aaaa2222", {"m.bin": "m"}, [*read_by(source), own])
    last = [*read_by(middle), *read_by(source)]
    write_run(Path("results/last"), "bbbb3333", {"summary.json": json.dumps(SUMMARY)}, last, commit="c0ffee")
    return tmp_path


def test_a_run_is_found_by_the_beginning_of_its_id_or_key_or_by_a_path() -> None:
    book = read_book()
    key = book.all["bbbb3333"].key
    for text in ("bbbb", "bbbb3333", key[:12], "results/last", "results/last/lineage.json"):
        assert resolve(text, book).record.run_id == "bbbb3333"
    for text in ("bbbb/summary.json", "results/last/summary.json"):
        assert resolve(text, book).id == "bbbb3333/summary.json"


def test_a_number_is_found_by_its_pointer() -> None:
    book = read_book()
    for pointer, value in {"/a~1b/value": 0.35, "/list/1/~0": 2, "/n": 3, "": SUMMARY}.items():
        assert read_value(resolve(f"bbbb/summary.json#{pointer}", book)) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bbb", "at least 4 characters"),
        ("aaaa", "aaaa2222 middle m; aaaa1111 source"),
        ("cccc", "bbbb3333 last"),
        ("results/nothing/x", "no such file"),
        ("bbbb/other.json", "it wrote: summary.json"),
        ("bbbb#/n", "is a run, not a file"),
        ("own.txt", "no such file"),
    ],
)
def test_an_id_that_means_nothing_or_several_things_is_refused_with_what_there_is(text: str, told: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        resolve(text, read_book())
    assert told in str(caught.value)


def test_runs_of_one_key_are_one_thing_and_the_current_one_is_taken() -> None:
    again = read_by(read_book().all["aaaa1111"])
    own = InputFile("own", "own.txt", "0" * 64, None)
    write_run(Path("results/middle/m"), "aaaa9999", {"m.bin": "m"}, [*again, own])
    book = read_book()
    key = book.all["aaaa9999"].key
    assert book.all["aaaa2222"].key == key
    assert resolve(key[:10], book).record.run_id == "aaaa9999"


@pytest.mark.parametrize(
    ("pointer", "told"),
    [("/nope", "there is: a/b, list, n"), ("/n/x", "nothing below it"), ("n", "begins with /"), ("/list/7", "0, 1")],
)
def test_a_pointer_to_nothing_names_the_keys_there_are(pointer: str, told: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        follow(SUMMARY, pointer, "summary.json")
    assert told in str(caught.value)


def test_a_number_of_an_altered_or_overwritten_file_is_refused() -> None:
    target = resolve("bbbb/summary.json#/n", read_book())
    Path("results/last/summary.json").write_text("{}")
    with pytest.raises(ArtifactError, match="altered after its run"):
        read_value(target)
    write_run(Path("results/last"), "dddd4444", {"summary.json": '{"n": 4}'})
    with pytest.raises(ArtifactError, match="overwritten by run dddd4444"):
        read_value(target)
    Path("results/last/summary.json").unlink()
    with pytest.raises(ArtifactError, match="absent"):
        read_value(target)


def test_numbers_are_in_json_only() -> None:
    with pytest.raises(ArtifactError, match="only be looked up in JSON"):
        read_value(resolve("results/source/s.bin#/n", read_book()))
    with pytest.raises(ArtifactError, match="not a file"):
        read_value(Target(read_book().all["bbbb3333"]))


def _walked() -> list[tuple[int, str, bool, str]]:
    book = read_book()
    nodes = walk(book.all["bbbb3333"], book)
    return [(n.depth, n.record.step if n.record else n.files[0].path, n.again, "; ".join(n.notes)) for n in nodes]


def test_a_walk_leads_to_the_repository_and_tells_each_run_once() -> None:
    assert _walked() == [
        (0, "last", False, ""),
        (1, "middle", False, ""),
        (2, "source", False, ""),
        (2, "own.txt", False, "own.txt: absent now"),
        (1, "source", True, ""),
    ]


def test_a_walk_follows_the_run_that_was_read_and_says_what_lies_there_now() -> None:
    Path("results/source/s.bin").write_text("altered")
    assert _walked()[2][3] == "results/source/s.bin: changed since it was read"
    write_run(Path("results/source"), "eeee5555", {"s.bin": "new"})
    assert _walked()[2] == (2, "source", False, "results/source/s.bin: now of run eeee5555, not what was read")
    write_run(Path("results/source"), "ffff6666", {"s.bin": "s"})
    assert _walked()[2][3] == "results/source/s.bin: now of run ffff6666, the same bytes"


def test_a_walk_without_history_says_that_another_run_is_there() -> None:
    Path(".cache/twohop/records/aaaa1111.json").unlink()
    write_run(Path("results/source"), "eeee5555", {"s.bin": "new"})
    assert "its run aaaa1111 has left no record; this is another run" in _walked()[2][3]


def test_a_record_that_was_read_leads_to_its_run() -> None:
    beside = Path("results/middle/m/lineage.json")
    write_run(Path("results/report"), "abab7777", {"r.html": "r"}, [InputFile("lineages", str(beside), "0" * 64, None)])
    book = read_book()
    steps = [n.record.step for n in walk(book.all["abab7777"], book) if n.record]
    assert steps[:2] == ["report", "middle"]


def test_what_rests_on_a_file_is_found_through_every_run() -> None:
    records = read_book().sorted()
    source = read_book().all["aaaa1111"]
    assert {r.step for r in downstream(records, [source.outputs[0].sha256])} == {"middle", "last"}
    assert {r.step for r in downstream(records, ["0" * 64])} == {"middle", "last"}
    assert {r.step for r in downstream(records, [], ["aaaa2222"])} == {"last"}
    assert downstream(records, ["f" * 64]) == []


def test_filters_combine() -> None:
    records = read_book().sorted()
    assert [r.step for r in select(records, model="m")] == ["middle"]
    assert [r.step for r in select(records, commit="c0ff", step="last")] == ["last"]
    assert select(records, step="last", model="m") == []
    assert select(records, since=datetime(2027, 1, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24", "2026-11-24T00:00:00+00:00"),
        ("2026-11-24T10:30", "2026-11-24T10:30:00+00:00"),
        ("2 days", "2026-11-22T12:00:00+00:00"),
        ("1 hour ago", "2026-11-24T11:00:00+00:00"),
    ],
)
def test_since_takes_dates_and_ages(text: str, expected: str) -> None:
    assert parse_since(text, datetime(2026, 11, 24, 12, tzinfo=UTC)).isoformat() == expected


def test_since_refuses_what_is_no_time() -> None:
    with pytest.raises(TwohopError, match="'yesterday' is no time"):
        parse_since("yesterday")


def test_history_keeps_what_a_later_run_overwrote() -> None:
    write_run(Path("results/last"), "dddd4444", {"summary.json": "{}"})
    book = read_book()
    assert "bbbb3333" not in book.current
    assert {r.run_id for r in book.sorted(history=True)} == {*book.current, "bbbb3333"}
    assert "bbbb3333" not in read_book(history=False).all
    assert Book().sorted() == []
