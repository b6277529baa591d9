"""The client and the cache against a real server with the faults of the real ones: promises F1 to F12, K4."""

import hashlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from picture_server import (
    PictureServer,
    bomb,
    certificate,
    drip,
    drip_headers,
    encoded,
    endless,
    failing,
    gzip_bomb,
    redirect,
    short,
)

from twohop.data._downloads import Fetched, PictureCache, Wanted, fetch_picture_at, fetch_pictures
from twohop.data._web import Clock, Refused, Rules, Web, check_url, retry_after, trusted, user_agent
from twohop.errors import ConfigError, DataError


class Naps:
    """A clock whose sleeps are written down and take no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.ahead = 0.0

    def clock(self) -> Clock:
        return Clock(lambda: time.monotonic() + self.ahead, self._sleep, lambda: 1.0)

    def _sleep(self, seconds: float) -> None:
        self.ahead += seconds
        if seconds >= 0.001:
            self.slept.append(round(seconds, 3))


@pytest.fixture
def server():
    with PictureServer() as running:
        yield running


@pytest.fixture
def naps():
    return Naps()


def rules(server, **changes) -> Rules:
    return Rules(**{"contact": "me@example.org", "hosts": frozenset(), "let_in": frozenset({server.place})} | changes)


def client(server, naps=None, **changes) -> Web:
    return Web(rules(server, **changes), (naps or Naps()).clock())


def result(server, path_or_url: str, tmp_path: Path, naps=None, sha1=None, size=None, **changes) -> Fetched:
    url = path_or_url if ":" in path_or_url else server.url(path_or_url)
    with client(server, naps, **changes) as web:
        return fetch_picture_at(Wanted("one", url, sha1, size), PictureCache(tmp_path / "cache"), web)


def test_good_picture_arrives(server, tmp_path):
    server.picture("/a.png")
    found = result(server, "/a.png", tmp_path)
    assert found.reason == ""
    assert (found.width, found.height, found.asked) == (40, 40, True)
    assert found.sha256 == hashlib.sha256(encoded()).hexdigest()
    assert PictureCache(tmp_path / "cache").read(found.sha256) == encoded()


# --- F1: deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [drip, drip_headers])
def test_f01_total_deadline_ends_a_server_that_drips(server, tmp_path, fault):
    server.replies["/slow.png"] = fault
    start = time.monotonic()
    found = result(server, "/slow.png", tmp_path, deadline_s=0.6)
    assert time.monotonic() - start < 3
    assert found.reason == "not whole within 0.6 s"
    assert server.asked["/slow.png"] == 1  # slow is slow: not asked again


def test_f01_server_that_accepts_and_says_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        web = Web(Rules("me@example.org", frozenset(), 0.5, let_in=frozenset({place})), Naps().clock())
        with web, pytest.raises(Refused, match=r"not whole within 0\.5 s"):
            web.get(f"http://{place}/", "media")


# --- F2: bytes --------------------------------------------------------------------------------------------------------


def test_f02_byte_cap_ends_an_endless_body(server, tmp_path):
    server.replies["/endless.png"] = endless
    assert result(server, "/endless.png", tmp_path, max_bytes=300_000).reason == "more than 300,000 bytes"


def test_f02_byte_cap_counts_after_decompression(server, naps):
    server.replies["/api"] = gzip_bomb
    with client(server, naps, max_bytes=1_000_000) as web, pytest.raises(Refused, match="more than 1,000,000 bytes"):
        web.get(server.url("/api"), "api")


def test_f02_compressed_answers_of_services_are_read(server):
    import gzip

    server.picture("/api", gzip.compress(b'{"ok": 1}'), "application/json", Content_Encoding="gzip")
    with client(server) as web:
        assert web.get(server.url("/api"), "api").data == b'{"ok": 1}'


def test_f02_picture_in_a_compression_nobody_asked_for_is_refused(server, tmp_path):
    server.replies["/a.png"] = gzip_bomb
    assert "content encoding 'gzip'" in result(server, "/a.png", tmp_path).reason
    assert server.requests[0][2]["accept-encoding"] == "identity"


def test_f02_announced_length_above_the_cap_is_refused_unread(server, tmp_path):
    server.picture("/big.png", bytes(400_000))
    assert result(server, "/big.png", tmp_path, max_bytes=300_000).reason == "400000 bytes are more than 300,000"


def test_f02_lying_length_is_no_picture(server, tmp_path, naps):
    server.replies["/short.png"] = short
    found = result(server, "/short.png", tmp_path, naps, attempts=2)
    assert found.sha256 is None
    assert "RemoteProtocolError" in found.reason
    assert "(2 attempts)" in found.reason


# --- F3: again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_f03_passing_faults_are_asked_again_ever_later(server, tmp_path, naps, status):
    server.replies["/a.png"] = failing(3, status, encoded())
    assert result(server, "/a.png", tmp_path, naps).reason == ""
    assert server.asked["/a.png"] == 4
    assert naps.slept[:3] == [1, 2, 4]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_f03_final_answers_are_not_asked_again(server, tmp_path, naps, status):
    server.replies["/a.png"] = failing(9, status, encoded())
    assert result(server, "/a.png", tmp_path, naps).reason == f"status {status}"
    assert server.asked["/a.png"] == 1
    assert naps.slept == []


def test_f03_retry_after_is_honoured(server, tmp_path, naps):
    server.replies["/a.png"] = failing(1, 429, encoded(), Retry_After="17")
    assert result(server, "/a.png", tmp_path, naps).reason == ""
    assert naps.slept == [17]


def test_f03_retry_after_that_is_too_long_gives_the_picture_up(server, tmp_path, naps):
    server.replies["/a.png"] = failing(1, 503, encoded(), Retry_After="86400")
    assert result(server, "/a.png", tmp_path, naps).reason == "status 503, and not again for 86400 s"
    assert naps.slept == []


def test_f03_retry_after_as_a_date():
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", lambda: 1445412470.0) == 10
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", lambda: 1e10) == 0
    assert [retry_after(x) for x in (None, "soon", "-3", "5")] == [0, 0, 0, 5]


def test_f03_given_up_after_the_last_attempt(server, tmp_path, naps):
    server.replies["/a.png"] = failing(99, 503, encoded())
    assert result(server, "/a.png", tmp_path, naps, attempts=3).reason == "status 503 (3 attempts)"
    assert server.asked["/a.png"] == 3


def test_f03_refused_connections_are_tried_again(tmp_path, naps):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = f"127.0.0.1:{closed.getsockname()[1]}"
    web = Web(Rules("me@example.org", frozenset(), attempts=3, let_in=frozenset({place})), naps.clock())
    with web, pytest.raises(Refused, match=r"ConnectError.*\(3 attempts\)"):
        web.get(f"http://{place}/", "media")
    assert naps.slept == [1, 2]


# --- F4: who asks -----------------------------------------------------------------------------------------------------


def test_f04_user_agent_names_tool_version_and_contact(server, tmp_path):
    server.picture("/a.png")
    result(server, "/a.png", tmp_path)
    said = server.requests[0][2]["user-agent"]
    assert said == user_agent("me@example.org")
    assert said.startswith("twohop/0.")
    assert "(me@example.org)" in said
    assert "Mozilla" not in said


@pytest.mark.parametrize("contact", ["", " ", "me", "me @ example"])
def test_f04_without_a_contact_nothing_is_asked(server, contact):
    with pytest.raises(ConfigError, match="no contact"):
        client(server, contact=contact)
    assert not server.requests


# --- F5: manners ------------------------------------------------------------------------------------------------------


def test_f05_at_most_two_connections_to_media_hosts(server, tmp_path):
    def slowly(handler):
        time.sleep(0.03)
        handler.send(encoded())

    server.otherwise = slowly
    wanted = [Wanted(f"{i}", server.url(f"/{i}.png")) for i in range(24)]
    with client(server) as web:
        done = list(fetch_pictures(wanted, PictureCache(tmp_path), web, len(wanted)))
    assert len(done) == 24
    assert not [d.reason for d in done if d.reason]
    assert server.most_at_once == 2
    assert server.connections == 2  # and they are kept


def test_f05_rate_of_bytes_from_media_hosts(server, tmp_path, naps):
    server.otherwise = lambda h: h.send(encoded("PNG", 200))
    size = len(encoded("PNG", 200))
    with client(server, naps, media_mbps=1.0) as web:
        for i in range(5):
            fetch_picture_at(Wanted(f"{i}", server.url(f"/{i}.png")), PictureCache(tmp_path), web)
    assert sum(naps.slept) == pytest.approx(5 * size * 8 / 1e6, rel=0.2)


def test_f05_services_are_asked_one_at_a_time_and_five_times_a_second(server):
    server.otherwise = lambda h: h.send(b"{}", "application/json")
    with Web(rules(server), Clock()) as web:
        threads = [threading.Thread(target=web.get, args=(server.url(f"/{i}"), "api")) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times = sorted(at for at, *_ in server.requests)
    assert len(times) == 6
    assert all(after - before > 0.19 for before, after in itertools.pairwise(times))


# --- F6: where to -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://pictures.example/a", "scheme 'http' is not https"),
        ("file:///etc/passwd", "scheme 'file' is not https"),
        ("https://other.example/a", "host 'other.example' is not allowed"),
        ("https://pictures.example.evil.example/a", "is not allowed"),
        ("https://evil-pictures.example/a", "is not allowed"),
        ("https://me:secret@pictures.example/a", "a name or password"),
        ("https://pictures.example:8443/a", "a port other than 443"),
        ("https:///a", "is not allowed"),
        ("https://127.0.0.1/a", "is not allowed"),
        ("pictures.example/a", "scheme 'none' is not https"),
    ],
)
def test_f06_other_addresses_are_refused(url, why):
    with pytest.raises(Refused, match=why):
        check_url(url, Rules("me@example.org", frozenset({"pictures.example"})))


@pytest.mark.parametrize("url", ["https://pictures.example/a", "https://pictures.example:443/a", "https://a.b.org/c"])
def test_f06_allowed_addresses(url):
    check_url(url, Rules("me@example.org", frozenset({"pictures.example", "*.b.org"})))


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("https://169.254.169.254/latest/meta-data", "host '169.254.169.254' is not allowed"),
        ("http://127.0.0.1:1/", "scheme 'http' is not https"),
        ("file:///etc/passwd", "scheme 'file' is not https"),
        ("//localhost/a.png", "scheme 'http' is not https"),
    ],
)
def test_f06_every_hop_of_a_redirect_is_checked(server, tmp_path, to, why):
    server.replies["/a.png"] = redirect(to)
    assert why in result(server, "/a.png", tmp_path).reason
    assert server.asked["/a.png"] == 1


def test_f06_good_redirects_are_followed_and_loops_are_not(server, tmp_path):
    server.replies["/a.png"] = redirect("/b.png")
    server.picture("/b.png")
    server.replies["/loop.png"] = redirect("/loop.png")
    assert result(server, "/a.png", tmp_path).reason == ""
    assert result(server, "/loop.png", tmp_path).reason == "more than 5 redirects"
    assert server.asked["/loop.png"] == 6


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "0.0.0.0",
        "224.0.0.1",
        "::ffff:127.0.0.1",
        "100.64.0.1",
    ],
)
def test_f06_addresses_that_are_not_public_are_not_connected_to(address, naps):
    allowed = Rules("me@example.org", frozenset({"pictures.example"}))
    web = Web(allowed, naps.clock(), lambda _host, _port: ["93.184.216.34", address])
    with web, pytest.raises(Refused, match="no public address"):
        web.get("https://pictures.example/a", "media")


def test_f06_connects_to_the_address_that_was_checked(server, naps, monkeypatch):
    """A resolver that changes its answer between the check and the connection gains nothing: it is asked once."""
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["127.0.0.1"]])
    connected = []

    def connect(self, host, port, *_args, **_kwargs):
        connected.append((host, port))
        raise OSError("stopped here")

    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", connect)
    allowed = Rules("me@example.org", frozenset({"pictures.example"}))
    with Web(allowed, naps.clock(), lambda _host, _port: next(answers)) as web, pytest.raises(OSError, match="stopped"):
        web.get("https://pictures.example/a", "media")
    assert connected == [("93.184.216.34", 443)]


def test_f06_name_of_the_host_is_what_the_certificate_must_have(tmp_path, naps):
    """Connecting to a checked address does not weaken TLS: the certificate is compared with the host's name."""
    with PictureServer(tmp_path) as server:
        server.picture("/a.png")
        port = server.server_address[1]
        trust = trusted(tmp_path / "server.pem")
        for host, fails in (("pictures.example", False), ("other.example", True)):
            place = frozenset({f"{host}:{port}"})
            allowed = Rules("me@example.org", frozenset(), attempts=1, let_in=place)
            with Web(allowed, naps.clock(), lambda _host, _port: ["127.0.0.1"], trust) as web:
                if fails:
                    with pytest.raises(Refused, match="certificate"):
                        web.get(f"https://{host}:{port}/a.png", "media")
                else:
                    assert web.get(f"https://{host}:{port}/a.png", "media").data == encoded()


def test_f06_certificate_that_nobody_signed_is_refused(tmp_path, naps):
    with PictureServer(tmp_path) as server:
        server.picture("/a.png")
        with client(server, naps, attempts=1) as web, pytest.raises(Refused, match="certificate"):
            web.get(server.url("/a.png"), "media")


# --- F7 to F10: the bytes ---------------------------------------------------------------------------------------------


def test_f07_announced_hash_and_size_match(server, tmp_path):
    data = encoded()
    server.picture("/a.png", data)
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    assert result(server, "/a.png", tmp_path, sha1=sha1, size=len(data)).reason == ""


def test_f07_flipped_byte_is_refused(server, tmp_path):
    data = encoded()
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    server.picture("/a.png", bytes(flipped))
    found = result(server, "/a.png", tmp_path, sha1=sha1, size=len(data))
    assert found.reason.startswith("sha1 ")
    assert f"where {sha1} was announced" in found.reason
    assert result(server, "/a.png", tmp_path, size=5).reason == f"{len(data)} bytes, where 5 were announced"


@pytest.mark.parametrize(
    ("data", "content_type", "why"),
    [
        (encoded("JPEG")[:-200], "image/jpeg", "cut off or broken picture"),
        (bomb(), "image/png", "too many pixels"),
        (bomb(9_000), "image/png", "pixels are more than"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", "type 'image/svg+xml' is no PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", "says image/png, but the bytes are no picture"),
        (encoded("TIFF"), "image/tiff", "type 'image/tiff' is no PNG"),
        (encoded("JPEG"), "image/png", "says image/png, but the bytes are JPEG"),
        (encoded(), "text/html", "type 'text/html' is no PNG"),
        (encoded(), "", "type 'none' is no PNG"),
        (b"", "image/png", "no picture"),
    ],
    ids=["truncated", "bomb", "small bomb", "svg", "disguised svg", "tiff", "wrong mime", "html", "no type", "empty"],
)  # fmt: skip
def test_f08_to_f10_what_is_no_whole_picture_of_its_type_is_refused(server, tmp_path, data, content_type, why):
    server.picture("/a", data, content_type)
    found = result(server, "/a", tmp_path)
    assert found.sha256 is None
    assert why in found.reason
    assert not list((tmp_path / "cache/objects").iterdir())


@pytest.mark.parametrize(("kind", "mime"), [("PNG", "image/png"), ("JPEG", "image/jpeg; q=1"), ("WEBP", "image/webp")])
def test_f10_the_three_formats_pass(server, tmp_path, kind, mime):
    server.picture("/a", encoded(kind), mime)
    assert result(server, "/a", tmp_path).reason == ""


# --- F11, F12, K4: many -----------------------------------------------------------------------------------------------


def many(server, n: int) -> list[Wanted]:
    for i in range(n):
        server.picture(f"/{i}.png", encoded(seed=i))
    return [Wanted(f"{i}", server.url(f"/{i}.png")) for i in range(n)]


def test_f11_failures_are_rows(server, tmp_path, naps):
    wanted = many(server, 20)
    server.replies["/3.png"] = failing(99, 404, b"")
    server.picture("/7.png", b"no picture")
    with client(server, naps) as web:
        done = {d.key: d for d in fetch_pictures(wanted, PictureCache(tmp_path), web, 20)}
    assert set(done) == {str(i) for i in range(20)}
    assert {k: d.reason for k, d in done.items() if d.reason} == {
        "3": "status 404",
        "7": "says image/png, but the bytes are no picture",
    }


def test_f12_nothing_is_asked_twice(server, tmp_path, naps):
    wanted = many(server, 10)
    cache = PictureCache(tmp_path)
    with client(server, naps) as web:
        first = {d.key: d.sha256 for d in fetch_pictures(wanted, cache, web)}
    with client(server, naps) as web:
        second = list(fetch_pictures(wanted, cache, web))
    assert set(server.asked.values()) == {1}
    assert {d.key: d.sha256 for d in second} == first
    assert not any(d.asked for d in second)


def test_f12_altered_or_lost_objects_are_fetched_again(server, tmp_path, naps):
    wanted = many(server, 2)
    cache = PictureCache(tmp_path)
    with client(server, naps) as web:
        first = {d.key: d for d in fetch_pictures(wanted, cache, web)}
        (tmp_path / "objects" / str(first["0"].sha256)).write_bytes(b"altered")
        (tmp_path / "objects" / str(first["1"].sha256)).unlink()
        second = {d.key: d for d in fetch_pictures(wanted, cache, web)}
    assert second == first
    assert set(server.asked.values()) == {2}
    with pytest.raises(DataError, match="no such picture"):
        cache.read("0" * 64)


FETCHER = """
import sys
from pathlib import Path
from twohop.data._downloads import PictureCache, Wanted, fetch_pictures
from twohop.data._web import Rules, Web
place, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
wanted = [Wanted(f"{i}", f"http://{place}/{i}.png") for i in range(n)]
with Web(Rules("me@example.org", frozenset(), let_in=frozenset({place}))) as web:
    for done in fetch_pictures(wanted, PictureCache(folder), web, n):
        assert not done.reason, done
        print(done.key, flush=True)
"""


def started(server, folder: Path, n: int) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", FETCHER, server.place, str(folder), str(n)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)


def slowed(server, seconds: float) -> None:
    def reply(handler):
        time.sleep(seconds)
        handler.send(encoded(seed=int(handler.path[1:-4])))

    server.otherwise = reply


def test_f12_killed_run_goes_on_without_one_repeated_request(server, tmp_path):
    """Of what was finished; what was on its way at the kill is asked again, two at most."""
    slowed(server, 0.02)
    run = started(server, tmp_path, 60)
    assert run.stdout is not None
    finished = {run.stdout.readline().strip() for _ in range(15)}
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    finished |= set(run.stdout.read().split())
    run.stdout.close()
    before = dict(server.asked)
    with started(server, tmp_path, 60) as again:
        assert again.wait(60) == 0
    repeated = [path for path, times in server.asked.items() if times > 1]
    assert len(server.asked) == 60
    assert not {f"/{key}.png" for key in finished} & set(repeated)
    assert len(repeated) <= 2
    assert len(before) < 60
    assert not [p for p in (tmp_path / "objects").iterdir() if len(p.name) != 64 and not p.name.endswith(".tmp")]


def test_k04_two_fetchers_share_a_cache_without_doubling(server, tmp_path):
    slowed(server, 0.01)
    with started(server, tmp_path, 40) as one, started(server, tmp_path, 40) as two:
        assert (one.wait(60), two.wait(60)) == (0, 0)
    assert len(server.asked) == 40
    assert set(server.asked.values()) == {1}


def test_certificate_fits_its_server(tmp_path):
    assert b"BEGIN CERTIFICATE" in certificate(tmp_path).read_bytes()


def test_c05_temporary_files_of_dead_runs_go_away(tmp_path):
    PictureCache(tmp_path)
    old, new = tmp_path / "objects/.a.1-1.tmp", tmp_path / "objects/.b.1-1.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    PictureCache(tmp_path)
    assert (old.exists(), new.exists()) == (False, True)
