import hashlib
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twohop.data import decode_picture, open_pictures, write_pictures
from twohop.errors import DataError


def noise(size=64):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def encoded(kind, size=64, **options):
    out = io.BytesIO()
    noise(size).save(out, kind, **options)
    return out.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_that_claims(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def archive(path, *pictures):
    files = {f"{hashlib.sha256(p).hexdigest()}.png": p for p in pictures}
    write_pictures(path, files)
    return sorted(files)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_f08_whole_pictures_are_decoded(kind):
    picture = decode_picture(encoded(kind), "here")
    assert (picture.mode, picture.size) == ("RGB", (64, 64))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_f08_a_cut_off_picture_is_named(kind, share):
    data = encoded(kind)
    with pytest.raises(DataError, match=r"where: somewhere/x.img"):
        decode_picture(data[: int(share * len(data))], "somewhere/x.img")


def test_f08_a_cut_off_picture_in_the_archive_is_named(tmp_path):
    data = encoded("PNG")[:-400]
    (name,) = archive(tmp_path / "p.zip", data)
    with open_pictures(tmp_path / "p.zip") as picture, pytest.raises(DataError, match=rf"cut off[\s\S]*{name}"):
        picture(name)


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_f09_pixels_are_counted_before_decoding(side):
    with pytest.raises(DataError, match="pixels"):
        decode_picture(png_that_claims(side, side), "bomb.png")


def test_f09_the_limit_is_ours():
    data = encoded("PNG", 64)
    assert decode_picture(data, "x", max_pixels=64 * 64).size == (64, 64)
    with pytest.raises(DataError, match=r"64 x 64 pixels are more than 4,095"):
        decode_picture(data, "x", max_pixels=64 * 64 - 1)


@pytest.mark.parametrize(
    "data",
    [
        encoded("TIFF"),
        encoded("GIF"),
        encoded("BMP"),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
        b"",
    ],
    ids=["tiff", "gif", "bmp", "svg", "eps", "empty"],
)
def test_f10_other_formats_are_refused(data):
    with pytest.raises(DataError, match="not a PNG, JPEG or WebP"):
        decode_picture(data, "x")


def test_f10_the_magic_bytes_decide_not_the_content_behind_them():
    with pytest.raises(DataError, match="cut off or broken"):
        decode_picture(b"\x89PNG\r\n\x1a\n" + encoded("TIFF"), "x")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_f08_any_bytes_are_a_picture_or_a_data_error(tail):
    for magic in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBP"):
        with pytest.raises(DataError):
            decode_picture(magic + tail, "x")


def test_archive_gives_back_the_pixels(tmp_path):
    (name,) = archive(tmp_path / "p.zip", encoded("PNG"))
    with open_pictures(tmp_path / "p.zip") as picture:
        assert picture.names() == [name]
        assert np.array_equal(np.asarray(picture(name)), np.asarray(noise()))


def test_archive_bytes_depend_on_the_pictures_alone(tmp_path):
    one, two = encoded("PNG", 32), encoded("PNG", 48)
    archive(tmp_path / "a.zip", one, two)
    archive(tmp_path / "b.zip", two, one)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as z:
        assert {i.compress_type for i in z.infolist()} == {zipfile.ZIP_STORED}


def test_every_flipped_byte_of_a_stored_picture_is_seen(tmp_path):
    data = encoded("PNG", 8)
    (name,) = archive(tmp_path / "p.zip", data)
    whole = (tmp_path / "p.zip").read_bytes()
    start = whole.index(data)
    for i in range(start, start + len(data), 7):
        flipped = bytearray(whole)
        flipped[i] ^= 1
        (tmp_path / "f.zip").write_bytes(flipped)
        with open_pictures(tmp_path / "f.zip") as picture, pytest.raises(DataError, match=name):
            picture(name)


def test_swapped_pictures_are_seen(tmp_path):
    one, two = encoded("PNG", 32), encoded("PNG", 48)
    names = [f"{hashlib.sha256(p).hexdigest()}.png" for p in (one, two)]
    write_pictures(tmp_path / "p.zip", dict(zip(names, (two, one), strict=True)))
    with open_pictures(tmp_path / "p.zip") as picture, pytest.raises(DataError, match="altered picture"):
        picture(names[0])


def test_unknown_and_badly_named_files_are_data_errors(tmp_path):
    write_pictures(tmp_path / "p.zip", {"flag.png": encoded("PNG")})
    with open_pictures(tmp_path / "p.zip") as picture:
        with pytest.raises(DataError, match="no such picture"):
            picture(f"{'0' * 64}.png")
        with pytest.raises(DataError, match="altered picture"):
            picture("flag.png")


def test_a_compressed_entry_is_refused(tmp_path):
    data = encoded("PNG")
    name = f"{hashlib.sha256(data).hexdigest()}.png"
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr(name, data)
    with open_pictures(tmp_path / "p.zip") as picture, pytest.raises(DataError, match="compressed"):
        picture(name)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_what_is_no_archive_is_a_data_error(tmp_path, content):
    path = tmp_path / "p.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot open the pictures[\s\S]*p.zip"):
        open_pictures(path)
