import os
import signal
import subprocess
import sys
import time
import zipfile

import polars as pl
import pytest

from twohop.data import FlagsSource, open_pictures
from twohop.errors import DataError
from twohop.steps import fetch_images
from twohop.steps._step import Job
from twohop.store import read_table, schemas, write_table

PARAMS = {
    "size_px": 48,
    "background": [128, 128, 128],
    "styles": ["simple", "noto_original"],
    "max_failed_share": 0.2,
}
CODES = ["FR", "BR", "KE", "JP"]


@pytest.fixture
def study(tmp_path):
    def entity(code):
        i = f"flags:{code}"
        return {
            "entity_id": i,
            "name": code,
            "aliases": [code],
            "kind": "country",
            "look_alikes": [],
            "evaluated": code in CODES,
        }

    codes = [*CODES, "DE"]
    wanted = {f"flags:{c}" for c in codes}
    pictures = [vars(p) for p in FlagsSource().pictures() if p.entity_id in wanted]
    write_table(
        tmp_path / "e.parquet", pl.DataFrame([entity(c) for c in codes], schema=schemas.ENTITIES), schemas.ENTITIES
    )
    table = pl.DataFrame(pictures, schema=schemas.PICTURE_SOURCES)
    write_table(tmp_path / "s.parquet", table, schemas.PICTURE_SOURCES)
    return tmp_path


def job(study, out="out", **changes):
    return Job(
        "fetch_images",
        None,
        {"fetch_images": {**PARAMS, **changes}},
        {"entities": (study / "e.parquet",), "picture_sources": (study / "s.parquet",), "source_pictures": ()},
        {"pictures": study / out / "pictures.zip", "manifest": study / out / "manifest.parquet"},
        study / "work",
    )


def manifest(study, out="out"):
    return read_table(study / out / "manifest.parquet", schemas.MANIFEST)


def break_locators(study, *broken):
    table = read_table(study / "s.parquet", schemas.PICTURE_SOURCES)
    locator = pl.when(pl.col("picture_id").is_in(broken)).then(pl.lit("mpl_flags:simple/QQ")).otherwise("locator")
    write_table(study / "s.parquet", table.with_columns(locator=locator), schemas.PICTURE_SOURCES)


def test_every_evaluated_entity_in_every_style(study):
    summary = fetch_images.run(job(study))
    table = manifest(study)
    assert set(table["picture_id"]) == {f"flags:{c}/{s}" for c in CODES for s in PARAMS["styles"]}
    assert (summary["done"], summary["failed"], summary["files"]) == (8, 0, 8)
    assert summary["bytes"] == table["size_bytes"].sum()
    with open_pictures(study / "out" / "pictures.zip") as picture:
        assert picture.names() == sorted(table["file"])
        assert {picture(f).size for f in table["file"]} == {(48, 48)}
    assert set(table["width"]) == set(table["height"]) == {48}


def test_f14_licence_author_and_page_are_kept(study):
    fetch_images.run(job(study))
    assert all(manifest(study).select(pl.col("licence", "author", "source_page").str.len_chars().min() > 0).row(0))


def test_same_pictures_are_stored_once(study):
    table = read_table(study / "s.parquet", schemas.PICTURE_SOURCES)
    same = table.with_columns(locator=pl.concat_str(pl.lit("mpl_flags:simple/"), pl.col("entity_id").str.slice(6)))
    write_table(study / "s.parquet", same, schemas.PICTURE_SOURCES)
    summary = fetch_images.run(job(study))
    assert (summary["done"], summary["files"]) == (8, 4)


def test_c01_same_bytes_from_scratch_and_after_an_interruption(study, monkeypatch):
    fetch_images.run(job(study, "whole"))
    (study / "work").rename(study / "old")
    real, calls = fetch_images.fetch_picture, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fetch_images, "fetch_picture", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch_images.run(job(study, "again"))
    assert not (study / "again").exists()
    fetch_images.run(job(study, "again"))
    assert len(calls) == 4 + 5, "three were finished, the interrupted one and four more are made"
    for name in ("pictures.zip", "manifest.parquet"):
        assert (study / "whole" / name).read_bytes() == (study / "again" / name).read_bytes()


def test_c01_kill_minus_nine_then_again(study):
    code = (
        "import sys, time; from pathlib import Path; sys.path[:0] = sys.argv[1:2];"
        "import test_fetch_images as t; from twohop.steps import fetch_images as f; real = f.fetch_picture;"
        "f.fetch_picture = lambda *a: (time.sleep(0.2), real(*a))[1]; f.run(t.job(Path(sys.argv[2]), 'killed'))"
    )
    here = os.path.dirname(__file__)  # noqa: PTH120
    process = subprocess.Popen([sys.executable, "-c", code, here, str(study)])
    deadline = time.monotonic() + 60
    while len(list((study / "work").glob("*.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 2 <= len(list((study / "work").glob("*.png"))) < 8
    assert not (study / "killed" / "pictures.zip").exists()
    fetch_images.run(job(study, "killed"))
    (study / "work").rename(study / "old")
    fetch_images.run(job(study, "whole"))
    assert (study / "whole" / "pictures.zip").read_bytes() == (study / "killed" / "pictures.zip").read_bytes()


def test_a_broken_leftover_is_made_again(study):
    fetch_images.run(job(study, "whole"))
    for path in (study / "work").glob("*.png"):
        path.write_bytes(path.read_bytes()[:50])
    fetch_images.run(job(study, "again"))
    assert (study / "whole" / "pictures.zip").read_bytes() == (study / "again" / "pictures.zip").read_bytes()


def test_f11_a_failure_is_a_row(study):
    break_locators(study, "flags:FR/simple")
    summary = fetch_images.run(job(study))
    assert (summary["done"], summary["failed"]) == (7, 1)
    (row,) = manifest(study).filter(pl.col("status") == "failed").to_dicts()
    assert row["picture_id"] == "flags:FR/simple"
    assert "no flag 'QQ'" in row["reason"]
    assert row["file"] is row["sha256"] is row["width"] is None
    with zipfile.ZipFile(study / "out" / "pictures.zip") as archive:
        assert len(archive.namelist()) == 7


def test_f11_too_many_failures_fail_the_step_and_leave_nothing(study):
    break_locators(study, "flags:FR/simple", "flags:BR/simple")
    with pytest.raises(DataError, match="2 of 8 pictures failed, more than 20%") as caught:
        fetch_images.run(job(study))
    assert "flags:BR/simple: no flag 'QQ'" in str(caught.value)
    assert not (study / "out").exists()


def test_no_picture_in_the_asked_styles_is_an_error(study):
    table = read_table(study / "s.parquet", schemas.PICTURE_SOURCES)
    write_table(study / "s.parquet", table.filter(pl.col("style") == "circle"), schemas.PICTURE_SOURCES)
    with pytest.raises(DataError, match="no picture of an evaluated entity in styles simple, noto_original"):
        fetch_images.run(job(study))
