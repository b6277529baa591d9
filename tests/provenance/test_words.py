"""Lines for people."""

from pathlib import Path

from records import read_by, write_run
from twohop.lineage import diff, read_book
from twohop.provenance import difference_lines, run_lines


def test_a_run_is_one_line_and_long_lists_are_cut() -> None:
    write_run(Path("results/many"), "abcd", {f"{i}.txt": "x" for i in range(6)}, dirty=True, commit="1" * 40)
    (line,) = [line for line in run_lines(read_book().sorted()) if "many" in line]
    assert line.startswith("abcd  2026-01-01 00:00  many ")
    assert line.endswith("1111111111 + edits  0.txt, 1.txt, 2.txt, 3.txt and 2 more")


def test_a_difference_is_told_in_sections(runs) -> None:
    old = runs["curate_entities"]
    params = {"curate_entities": {"seed": 9}}
    new = write_run(Path("results/curate_entities"), "new1", {"facts.parquet": "x"}, params=params)
    text = "\n".join(difference_lines(diff(old, new, read_book())))
    assert "params:\n  curate_entities.names" in text
    assert "curate_entities.seed: 0 -> 9" in text
    assert "inputs:" not in text
    assert "seconds: 1.0 -> 1.0, B / A = 1.00" in text


def test_no_difference_is_said(runs) -> None:
    record = runs["fetch_images"]
    assert "no difference that counts" in "\n".join(difference_lines(diff(record, record, read_book())))


def test_the_first_cause_is_told(runs) -> None:
    old = runs["fetch_images"]
    a = write_run(Path("results/use"), "use1", {"u.bin": "1"}, read_inputs(old))
    params = {"fetch_images": {"seed": 8}}
    new = write_run(Path("results/fetch_images"), "new2", {"manifest.parquet": "y"}, params=params)
    b = write_run(Path("results/use"), "use2", {"u.bin": "2"}, read_inputs(new))
    text = "\n".join(difference_lines(diff(a, b, read_book())))
    assert "first causes of these:\n  1111-fet fetch_images -> new2 fetch_images\n" in text
    assert "fetch_images.seed: 1 -> 8" in text


def read_inputs(record):
    return [i for i in read_by(record) if i.name == "manifest"]
