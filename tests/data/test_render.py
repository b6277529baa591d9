import hashlib
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as VectorPath

from twohop.data import fetch_picture, render_flag
from twohop.data._payload import PAYLOAD_SHA256, check_sha256, payload
from twohop.data._render import flag_drawing
from twohop.errors import DataError

GREY = (128, 128, 128)


def by_figure(code, style, size):
    """The same paths the slow way, as an oracle: patches in a Figure."""
    drawing = flag_drawing(code, style)
    fig = Figure(figsize=(1, 1), dpi=size, facecolor=tuple(x / 255 for x in GREY))
    canvas = FigureCanvasAgg(fig)
    axes, side = fig.add_axes((0, 0, 1, 1)), max(drawing.width, drawing.height)
    axes.axis("off")
    for limits, length in ((axes.set_xlim, drawing.width), (axes.set_ylim, drawing.height)):
        limits((length - side) / 2, (length + side) / 2)
    for shape in drawing.shapes:
        axes.add_patch(PathPatch(VectorPath(shape.vertices, shape.codes), fc=shape.colour, ec="none"))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


@pytest.mark.parametrize(("code", "style"), [("FR", "noto_original"), ("BR", "4x3"), ("NP", "circle"), ("KE", "1x1")])
def test_pixels_equal_those_of_a_figure(code, style):
    ours = np.asarray(render_flag(code, style, 112, GREY), dtype=int)
    assert np.abs(ours - by_figure(code, style, 112)).max() <= 1


def test_flag_is_upright_centred_and_on_its_background():
    picture = render_flag("ID", "4x3", 120, (1, 2, 3))  # red over white, 4:3
    assert picture.mode == "RGB"
    assert picture.size == (120, 120)
    assert picture.getpixel((60, 5)) == (1, 2, 3) == picture.getpixel((60, 115))
    red, white = picture.getpixel((60, 40)), picture.getpixel((60, 80))
    assert red[0] > 200 > red[1]
    assert min(white) > 240


def test_same_bytes_in_another_process():
    code = (
        "import hashlib; from twohop.data import fetch_picture;"
        "print(hashlib.sha256(fetch_picture('mpl_flags:noto_waved/LK', 96, (9, 9, 9))).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == hashlib.sha256(fetch_picture("mpl_flags:noto_waved/LK", 96, (9, 9, 9))).hexdigest()


@pytest.mark.parametrize("locator", ["mpl_flags:simple/QQ", "https://example.org/x.png", "", "nothing"])
def test_what_cannot_be_fetched_is_a_data_error(locator):
    with pytest.raises(DataError, match=r"no flag|unknown scheme"):
        fetch_picture(locator, 64, GREY)


def test_payload_is_what_its_record_says():
    for name in PAYLOAD_SHA256:
        assert payload(name).is_file()


def test_altered_payload_is_named(tmp_path):
    name = "mpl_flags/data/flags_simple.json"
    path = tmp_path / "flags_simple.json"
    data = bytearray(payload(name).read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"altered file[\s\S]*flags_simple.json"):
        check_sha256(path, PAYLOAD_SHA256[name])
    with pytest.raises(DataError, match="cannot read"):
        check_sha256(tmp_path / "absent", PAYLOAD_SHA256[name])
