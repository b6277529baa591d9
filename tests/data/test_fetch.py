"""Local pictures on the canvas: whole, centred, and only those that the step was given."""

import io
from pathlib import Path

import pytest
from PIL import Image

from twohop.data import check_local, fetch_picture
from twohop.errors import DataError


def test_a_local_picture_keeps_its_shape_on_the_canvas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (200, 100), (200, 0, 0)).save("wide.png")
    made = Image.open(io.BytesIO(fetch_picture("file:wide.png", 64, (1, 2, 3))))
    assert made.size == (64, 64)
    assert made.getpixel((32, 32)) == (200, 0, 0)
    assert made.getpixel((32, 10)) == made.getpixel((32, 53)) == (1, 2, 3)
    assert made.getpixel((0, 20)) == (200, 0, 0)


def test_f08_a_local_picture_that_is_cut_off_is_refused(tmp_path):
    path = tmp_path / "p.jpg"
    Image.effect_noise((64, 64), 60).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="cut off or broken"):
        fetch_picture(f"file:{path}", 64, (0, 0, 0))
    with pytest.raises(DataError, match="cannot read it"):
        fetch_picture(f"file:{tmp_path}/none.jpg", 64, (0, 0, 0))


def test_f06_a_file_that_is_no_input_is_not_read():
    files = [Path("own/a.png")]
    check_local(["file:own/a.png", "mpl_flags:1x1/FR"], files)
    for locator in ("file:own/b.png", "file:own/../own/a.png", "file:/etc/passwd"):
        with pytest.raises(DataError, match="no input of this step"):
            check_local([locator], files)
