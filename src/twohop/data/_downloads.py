"""Many pictures from the web into a cache folder, each of them once (promises F7, F10 to F12, K4).

    objects/<sha256>         the bytes, under their own name
    addresses/<sha256>.json  what was fetched from an address: its object, when, of which type

An address that the cache knows is not asked again. Two processes share a cache: they take turns by a lock per group of
addresses. A file has its name only when it is whole and on the disk.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from filelock import FileLock

from twohop.data._pictures import decode_picture, picture_format
from twohop.data._web import Web
from twohop.errors import DataError

LOG = logging.getLogger(__name__)
MIME = {"image/png": "PNG", "image/jpeg": "JPEG", "image/jpg": "JPEG", "image/webp": "WEBP"}
"""Types that are accepted, and the format that the first bytes must show."""
STRIPES = 64
"""Locks of a cache; processes that want addresses of one stripe wait for each other."""
PROGRESS_S = 10.0
"""Seconds between two lines of progress."""
STRAY_S = 3600.0
"""Age at which a temporary file belongs to nobody."""
AHEAD = 4
"""Addresses that are handed to each connection ahead of time."""


@dataclass(frozen=True)
class Wanted:
    """A picture to fetch, and what its source says of it."""

    key: str
    url: str
    sha1: str | None = None
    """Of an original; a thumbnail has none."""
    bytes: int | None = None


@dataclass(frozen=True)
class Fetched:
    """What became of it: one row per picture (promise F11)."""

    key: str
    url: str
    sha256: str | None
    """Of the bytes; None: failed."""
    size_bytes: int
    width: int
    height: int
    reason: str
    """Why there is none; empty when there is."""
    asked: bool
    """False: it was in the cache."""


class PictureCache:
    """The cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("objects", "addresses", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for stray in (folder / name).glob(".*.tmp"):  # of a killed process; a living one is done in seconds
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - stray.stat().st_mtime > STRAY_S:
                        stray.unlink()

    def read(self, sha256: str) -> bytes:
        """An object's bytes, compared with its name.

        Raises:
            DataError: it is absent or altered.
        """
        path = self.folder / "objects" / sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError("no such picture in the cache", str(path), "fetch it again") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink()
            raise DataError("altered picture in the cache: removed", str(path), "fetch it again")
        return data

    def known(self, url: str) -> bytes | None:
        """What an address gave, if it is still there and whole."""
        try:
            return self.read(str(json.loads(self._address(url).read_text(encoding="utf-8"))["sha256"]))
        except (FileNotFoundError, ValueError, KeyError, DataError):
            return None

    def keep(self, url: str, data: bytes, content_type: str) -> None:
        """Write the object, then what the address gave."""
        sha256 = hashlib.sha256(data).hexdigest()
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"url": url, "sha256": sha256, "type": content_type, "at": at}
        write_whole(self.folder / "objects" / sha256, data)
        write_whole(self._address(url), json.dumps(record).encode())

    def lock(self, url: str) -> FileLock:
        """Held while an address is asked."""
        stripe = int(hashlib.sha256(url.encode()).hexdigest(), 16) % STRIPES
        return FileLock(self.folder / "locks" / f"{stripe:02d}.lock", thread_local=False)

    def _address(self, url: str) -> Path:
        return self.folder / "addresses" / f"{hashlib.sha256(url.encode()).hexdigest()}.json"


def write_whole(path: Path, data: bytes) -> None:
    """Temporary file, fsync, rename."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with tmp.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    tmp.replace(path)


def fetch_pictures(
    wanted: Iterable[Wanted], cache: PictureCache, web: Web, total: int | None = None
) -> Iterator[Fetched]:
    """Fetch pictures over the allowed connections; results come as they are ready, and are all that is held.

    Args:
        wanted: pictures; may be a generator.
        cache: where they are kept.
        web: the client.
        total: how many there are, for the progress.
    """
    todo, progress = iter(wanted), _Progress(total)
    with ThreadPoolExecutor(web.rules.media_connections, "fetch") as pool:
        running: set[Future[Fetched]] = set()
        try:
            while True:
                room = web.rules.media_connections * AHEAD - len(running)
                running |= {pool.submit(fetch_picture_at, item, cache, web) for item in islice(todo, room)}
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    progress.add(future.result())
                    yield future.result()
        finally:
            for future in running:
                future.cancel()
    progress.say()


def fetch_picture_at(item: Wanted, cache: PictureCache, web: Web) -> Fetched:
    """One picture; a fault of it is a result with a reason, not an error."""
    with cache.lock(item.url):
        data = cache.known(item.url)
        asked, content_type = data is None, ""
        try:
            if data is None:
                data, content_type = _ask(item, web)
            picture = decode_picture(data, item.key)  # only what is whole goes into the cache
            if asked:
                cache.keep(item.url, data, content_type)
        except DataError as error:
            return Fetched(item.key, item.url, None, 0, 0, 0, error.what, asked)
    sha256 = hashlib.sha256(data).hexdigest()
    return Fetched(item.key, item.url, sha256, len(data), picture.width, picture.height, "", asked)


def _ask(item: Wanted, web: Web) -> tuple[bytes, str]:
    """Bytes and type, as announced."""
    answer = web.get(item.url, "media", headers={"accept": ", ".join(MIME)})
    _check_announced(item, answer.data)
    content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in MIME:
        raise DataError(f"type {content_type or 'none'!r} is no PNG, JPEG or WebP", item.key, "leave it out")
    found = picture_format(answer.data)
    if found != MIME[content_type]:
        raise DataError(f"says {content_type}, but the bytes are {found or 'no picture'}", item.key, "leave it out")
    return answer.data, content_type


def _check_announced(item: Wanted, data: bytes) -> None:
    """Size and hash that the service named (promise F7)."""
    if item.bytes is not None and len(data) != item.bytes:
        raise DataError(f"{len(data)} bytes, where {item.bytes} were announced", item.key, "look it up again")
    if item.sha1 is not None:
        found = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if found != item.sha1:
            raise DataError(f"sha1 {found}, where {item.sha1} was announced", item.key, "look it up again")


class _Progress:
    """Lines with the rate, the time left, and failures by reason."""

    def __init__(self, total: int | None) -> None:
        self.total, self.start, self.said = total, time.monotonic(), time.monotonic()
        self.done = self.cached = 0
        self.failed: Counter[str] = Counter()

    def add(self, result: Fetched) -> None:
        self.done += 1
        self.cached += not result.asked
        if result.reason:
            self.failed[result.reason[:60]] += 1
        if time.monotonic() - self.said >= PROGRESS_S:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        rate = self.done / max(self.said - self.start, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total and rate else ""
        reasons = "; ".join(f"{n} x {why}" for why, n in self.failed.most_common(4))
        of = f" of {self.total}" if self.total else ""
        LOG.info(
            "%d%s pictures, %d from the cache, %.1f a second%s%s",
            self.done,
            of,
            self.cached,
            rate,
            left,
            f"; failed: {reasons}" if reasons else "",
        )
