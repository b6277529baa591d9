"""A real HTTP(S) server on this machine with the faults of the real ones; it counts what it is asked."""

import datetime
import gzip
import io
import ipaddress
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image


def encoded(kind: str = "PNG", side: int = 40, seed: int = 0) -> bytes:
    """A picture's bytes."""
    out = io.BytesIO()
    picture = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    picture.putpixel((seed % side, seed // side % side), (255, seed % 251, 0))
    picture.save(out, kind)
    return out.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that claims `side` squared pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Looks the path up in the server's `replies`."""

    protocol_version = "HTTP/1.1"
    server: "PictureServer"

    def do_GET(self) -> None:
        self.server.note(self)
        path = self.path.partition("?")[0]
        reply = self.server.replies.get(path) or self.server.otherwise
        try:
            reply(self)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def setup(self) -> None:
        super().setup()
        self.server.opened(+1)

    def finish(self) -> None:
        try:
            super().finish()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            pass
        finally:
            self.server.opened(-1)

    def send(self, data: bytes, content_type: str = "image/png", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        lengths = {"Content-Length": str(len(data))}
        for name, value in {**lengths, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class PictureServer(ThreadingHTTPServer):
    """Start with `with PictureServer() as server`; `server.url(path)` is an address of it."""

    daemon_threads = True

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: dict[str, Reply] = {}
        self.otherwise: Reply = lambda h: h.send(b"nothing here", "text/plain", 404)
        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[float, str, dict[str, str]]] = []
        self.at_once = self.most_at_once = self.connections = 0
        self._lock = threading.Lock()
        self.scheme = "http"
        if folder is not None:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate(folder))
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""

    def note(self, handler: Handler) -> None:
        with self._lock:
            self.asked[handler.path] += 1
            self.requests.append((time.monotonic(), handler.path, {k.lower(): v for k, v in handler.headers.items()}))

    def opened(self, change: int) -> None:
        with self._lock:
            self.at_once += change
            self.connections += change > 0
            self.most_at_once = max(self.most_at_once, self.at_once)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return f"{self.scheme}://{self.place}{path}"

    def picture(self, path: str, data: bytes | None = None, content_type: str = "image/png", **headers: str) -> str:
        body = encoded() if data is None else data
        self.replies[path] = lambda h: h.send(body, content_type, **headers)
        return self.url(path)

    def __enter__(self) -> "PictureServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 and pictures.example, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("pictures.example")]
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    path = folder / "server.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


# --- faults -----------------------------------------------------------------------------------------------------------


def drip(handler: Handler) -> None:
    """A byte of the body every 50 ms, for ever."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def drip_headers(handler: Handler) -> None:
    """A byte of the headers every 50 ms, for ever."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def endless(handler: Handler) -> None:
    """A body without end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "image/png")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def gzip_bomb(handler: Handler) -> None:
    """100 MB of zeros in 100 kB."""
    handler.send(gzip.compress(bytes(100_000_000)), "application/json", Content_Encoding="gzip")


def short(handler: Handler) -> None:
    """A length that is longer than what comes."""
    data = encoded()
    handler.send(data, Content_Length=str(len(data) + 10))
    handler.close_connection = True


def redirect(to: str) -> Reply:
    return lambda handler: handler.send(b"", "", 302, Location=to)


def failing(times: int, status: int, then: bytes, **headers: str) -> Reply:
    """So many times a status, then a picture."""
    left = [times]

    def reply(handler: Handler) -> None:
        left[0] -= 1
        if left[0] >= 0:
            handler.send(b"busy", "text/plain", status, **headers)
        else:
            handler.send(then)

    return reply
