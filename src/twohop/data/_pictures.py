"""Pictures in and out: untrusted bytes to pixels (promises F8-F10), and the content-addressed archive of a step."""

import contextlib
import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Generator, Mapping
from pathlib import Path
from types import TracebackType

from PIL import Image

from twohop.errors import DataError

MAX_PIXELS = 50_000_000
"""Largest picture that is decoded, in pixels; Pillow only warns at 89 million and refuses at 179 million."""
MAX_BYTES = 100_000_000
"""Largest encoded picture."""
ZIP_DATE = (1980, 1, 1, 0, 0, 0)
"""Fixed timestamp (the zip format's first day), so that the same pictures give the same bytes."""
FILE_MODE = 0o644 << 16
_NAME = re.compile(r"([0-9a-f]{64})\.(?:png|jpg|webp)")
_AGAIN = "make it again: snakemake --cores all"


def picture_format(data: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode_picture(data: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode every pixel of a PNG, JPEG or WebP; the header's size is checked before that.

    Returns:
        An RGB picture; transparency is dropped.

    Raises:
        DataError: another format, too many pixels, or a picture that is cut off or broken.
    """
    kind = picture_format(data)
    if kind is None:
        raise DataError("not a PNG, JPEG or WebP picture", where, "convert it to PNG")
    with _pillow_faults(where), Image.open(io.BytesIO(data), formats=[kind]) as picture:
        if picture.width * picture.height > max_pixels:
            size = f"{picture.width} x {picture.height}"
            raise DataError(f"{size} pixels are more than {max_pixels:,}", where, "scale the picture down")
        picture.load()
        return picture.convert("RGB")


@contextlib.contextmanager
def _pillow_faults(where: str) -> Generator[None]:
    """Everything that Pillow raises or warns about broken bytes, as a DataError that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"too many pixels: {error}", where, "scale the picture down") from None
    except (OSError, SyntaxError, ValueError, EOFError, Warning) as error:
        raise DataError(f"cut off or broken picture: {error}", where, "fetch or render it again") from None


def write_pictures(path: Path, files: Mapping[str, bytes]) -> None:
    """Write an uncompressed zip whose bytes depend on the files alone: sorted names, fixed dates and modes.

    Args:
        path: where to; written in place, so give a temporary name.
        files: name -> bytes.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, ZIP_DATE)
            info.create_system, info.external_attr = 3, FILE_MODE
            archive.writestr(info, files[name])


class Pictures:
    """An open archive of pictures; call it with a file name of the manifest. A context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot open the pictures: {error}", str(path), _AGAIN) from None

    def __call__(self, file: str) -> Image.Image:
        """The picture `<sha256>.<ending>`, checked against that sha256 and fully decoded, as RGB.

        Raises:
            DataError: no such file, other bytes than its name says, or not a whole picture.
        """
        where = f"{self.path}/{file}"
        match = _NAME.fullmatch(file)
        data = self._read(file, where)
        if match is None or hashlib.sha256(data).hexdigest() != match[1]:
            raise DataError("altered picture: its sha256 is not what its name says", where, _AGAIN)
        return decode_picture(data, where)

    def names(self) -> list[str]:
        """File names in the archive, sorted."""
        return sorted(self._archive.namelist())

    def _read(self, file: str, where: str) -> bytes:
        try:
            info = self._archive.getinfo(file)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_BYTES:
                raise DataError("compressed or too large entry", where, _AGAIN)
            return self._archive.read(info)
        except KeyError:
            raise DataError("no such picture in the archive", where, _AGAIN) from None
        except (OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"cut off or altered picture: {error}", where, _AGAIN) from None

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()


def open_pictures(path: Path) -> Pictures:
    """Open `pictures.zip` (see `Pictures`).

    Raises:
        DataError: the file is absent or no zip.
    """
    return Pictures(path)
