"""One polite and careful HTTP client, for pictures and for the services that describe them (promises F1 to F6).

- Only https, only hosts that are named, checked anew at every redirect; an address that is not public is not connected
  to, and the address that was checked is the one that is connected to.
- A deadline for the whole answer and a limit on its bytes, before and after decompression.
- Again only after 429, 5xx and broken or late connections: exponential with jitter, never before Retry-After.
- A User-Agent that says who asks. Services are asked one at a time and at most `api_per_s` times a second; media hosts
  over at most `media_connections` connections and `media_mbps` megabits a second.
"""

import contextlib
import email.utils
import importlib.metadata
import ipaddress
import random
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx
import tenacity

from twohop.errors import ConfigError, DataError

MAX_HOPS = 5
"""Redirects that are followed."""
CONNECT_S, READ_S = 15.0, 20.0
"""Longest wait for a connection, and for the next bytes."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0
"""Waits between attempts; a server that asks for more than the longest is given up."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
Kind = Literal["api", "media"]


@dataclass(frozen=True)
class Rules:
    """What the client may do."""

    contact: str
    """Address or page of a person: part of every User-Agent (the media hosts' policy)."""
    hosts: frozenset[str]
    """Hosts that may be asked; `*.example.org` stands for all below."""
    deadline_s: float = 60.0
    """Whole time for one answer, redirects and all attempts included, polite waits not."""
    max_bytes: int = 20_000_000
    """Largest answer, in bytes, also after decompression."""
    attempts: int = 5
    """How often the same is asked at most."""
    api_per_s: float = 5.0
    """Questions to services per second."""
    media_connections: int = 2
    """Connections to media hosts."""
    media_mbps: float = 25.0
    """Megabits per second from media hosts, over all connections."""
    let_in: frozenset[str] = frozenset()
    """`host:port` of a server on this machine that tests may ask, also by http; empty outside tests."""


@dataclass(frozen=True)
class Clock:
    """Time, so that tests need not wait."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random


@dataclass(frozen=True)
class Answer:
    """A whole answer with status 200."""

    url: str
    """After redirects."""
    data: bytes
    """Decompressed."""
    headers: Mapping[str, str]
    """Names in lower case."""


Check = Callable[[Answer], None]


class Refused(DataError):
    """An answer that is not asked for again: the reason is in `what`."""


class NotYet(Exception):
    """An attempt that failed in a way that may pass; `wait_s`: what the server asked for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.wait_s = why, wait_s


class Web:
    """A client; threads may share it. A context manager."""

    def __init__(
        self,
        rules: Rules,
        clock: Clock | None = None,
        resolve: Callable[[str, int], Iterable[str]] | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        if not any(c in rules.contact for c in "@/") or len(rules.contact.split()) != 1:
            raise ConfigError(
                f"no contact ({rules.contact!r}): the media hosts' policy wants to know whom to write to",
                "params.yaml, curate_entities.source.contact",
                "give an e-mail address or a page, e.g. contact: you@example.org",
            )
        self.rules, self.clock = rules, clock or Clock()
        self._deadline = threading.local()
        self._turn, self._next_api = threading.Lock(), 0.0
        self._media = threading.BoundedSemaphore(rules.media_connections)
        self._bucket = _Bucket(rules.media_mbps * 1e6 / 8, self.clock)
        backend = _Checked(rules, resolve or _addresses, self._left)
        self._client = httpx.Client(
            transport=_Transport(backend, trust or trusted(), rules),
            headers={"user-agent": user_agent(rules.contact)},
            timeout=httpx.Timeout(READ_S, connect=CONNECT_S),
            follow_redirects=False,
            trust_env=False,
        )

    def get(
        self,
        url: str,
        kind: Kind,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        check: "Check | None" = None,
    ) -> Answer:
        """Ask, and ask again where that may help.

        Args:
            url: https, of an allowed host.
            kind: a service, or a host of pictures.
            params: query.
            headers: more headers.
            deadline_s: another deadline than the rules'.
            check: looks at a whole answer; raises `NotYet` for one that should be asked for again.

        Raises:
            Refused: the reason, and how often it was asked.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.rules.attempts),
            wait=self._wait,
            retry=tenacity.retry_if_exception_type(NotYet),
            sleep=self.clock.sleep,
        )
        target = str(httpx.URL(url, params=dict(params)) if params else httpx.URL(url))
        budget = _Budget(deadline_s or self.rules.deadline_s)
        try:
            return retrying(self._attempt, target, kind, headers or {}, budget, check)
        except tenacity.RetryError as error:
            last: Any = error.last_attempt.exception()
            tried = error.last_attempt.attempt_number
            raise Refused(f"{last.why} ({tried} attempts)", url, "try again later") from None

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one attempt --------------------------------------------------------------------------------------------------

    def _attempt(
        self, url: str, kind: Kind, headers: Mapping[str, str], budget: "_Budget", check: "Check | None"
    ) -> Answer:
        with self._place(kind):
            start = self.clock.now()
            self._deadline.at = start + budget.left_s
            try:
                answer = self._followed(url, kind, headers)
                if check is not None:
                    check(answer)
                return answer
            except (_Late, NotYet) as error:
                if isinstance(error, NotYet) and self._left() > 0:
                    raise
                raise Refused(f"not whole within {budget.whole_s:g} s", url, "try again later") from None
            finally:
                budget.left_s -= self.clock.now() - start

    def _followed(self, url: str, kind: Kind, headers: Mapping[str, str]) -> Answer:
        target = url
        for _ in range(MAX_HOPS + 1):
            answer = self._hop(target, kind, headers)
            if isinstance(answer, Answer):
                return answer
            target = urljoin(target, answer)
        raise Refused(f"more than {MAX_HOPS} redirects", url, "give the picture's own address")

    def _hop(self, url: str, kind: Kind, headers: Mapping[str, str]) -> Answer | str:
        """The answer, or where it is said to be."""
        check_url(url, self.rules)
        coding = "identity" if kind == "media" else "gzip"
        try:
            with self._client.stream("GET", url, headers={"accept-encoding": coding, **headers}) as response:
                if response.status_code in REDIRECTS and "location" in response.headers:
                    return response.headers["location"]
                _check_status(response, url)
                return Answer(url, self._body(response, kind, url), {k.lower(): v for k, v in response.headers.items()})
        except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError) as error:
            raise NotYet(f"{type(error).__name__}: {error}") from None
        except httpx.HTTPError as error:
            raise Refused(f"{type(error).__name__}: {error}", url, "check the address") from None

    def _body(self, response: httpx.Response, kind: Kind, url: str) -> bytes:
        limit, coding = self.rules.max_bytes, response.headers.get("content-encoding", "identity").lower()
        if int(response.headers.get("content-length") or 0) > limit:
            raise Refused(f"{response.headers['content-length']} bytes are more than {limit:,}", url, "a smaller one")
        if coding not in ("identity", "gzip") or (kind == "media" and coding != "identity"):
            raise Refused(f"content encoding {coding!r}, which was not asked for", url, "try again later")
        unpack = zlib.decompressobj(wbits=31) if coding == "gzip" else None
        out = bytearray()
        for chunk in response.iter_raw(1 << 16):
            if kind == "media":
                self._bucket.take(len(chunk))
            if self._left() <= 0:
                raise _Late
            out += chunk if unpack is None else _unpacked(unpack, chunk, limit + 1 - len(out))
            if len(out) > limit:
                raise Refused(f"more than {limit:,} bytes", url, "give a smaller one, or raise the limit")
        if unpack is not None and not unpack.eof:
            raise NotYet("the answer's compression is cut off")
        return bytes(out)

    # --- manners ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self, kind: Kind) -> Generator[None]:
        """A turn at the services, or one of the connections to media hosts."""
        if kind == "media":
            with self._media:
                yield
            return
        with self._turn:
            self.clock.sleep(max(0.0, self._next_api - self.clock.now()))
            self._next_api = self.clock.now() + 1 / self.rules.api_per_s
            yield

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: exponential with jitter, no less than the server asks for."""
        error: Any = state.outcome.exception() if state.outcome else None
        growing = min(FIRST_WAIT_S * 2 ** (state.attempt_number - 1), LONGEST_WAIT_S)
        return max(error.wait_s, growing * (0.5 + self.clock.jitter() / 2))

    def _left(self) -> float:
        """Seconds until this thread's deadline."""
        return getattr(self._deadline, "at", float("inf")) - self.clock.now()


class _Late(Exception):
    """The deadline has passed."""


class _Budget:
    """Seconds that all attempts at one answer may take together."""

    def __init__(self, whole_s: float) -> None:
        self.whole_s = self.left_s = whole_s


def trusted(certificates: Path | None = None) -> ssl.SSLContext:
    """The machine's certificates, or those of one file."""
    return ssl.create_default_context(cafile=None if certificates is None else str(certificates))


def user_agent(contact: str) -> str:
    """Tool, version, contact and library, as the media hosts' policy has it."""
    version = importlib.metadata.version("twohop")
    return f"twohop/{version} ({contact}) httpx/{httpx.__version__}"


def check_url(url: str, rules: Rules) -> None:
    """Scheme, host and port of an address that is to be asked (promise F6).

    Raises:
        Refused: not https, with a name or password, or no allowed host.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    with contextlib.suppress(ValueError):
        if f"{host}:{parts.port}" in rules.let_in and parts.scheme in ("http", "https"):
            return
    if parts.scheme != "https":
        raise Refused(f"scheme {parts.scheme or 'none'!r} is not https", url, "give an https address")
    if "@" in parts.netloc:
        raise Refused("a name or password in the address", url, "give it without")
    if not _port_is_default(parts.netloc, host):
        raise Refused("a port other than 443", url, "give it without a port")
    if not any(_covers(allowed, host) for allowed in rules.hosts):
        known = ", ".join(sorted(rules.hosts)) or "none"
        raise Refused(f"host {host!r} is not allowed (allowed: {known})", url, "allow it, or leave the address out")


def _port_is_default(netloc: str, host: str) -> bool:
    return netloc.lower().rstrip(".") in (host, f"{host}:443")


def _covers(allowed: str, host: str) -> bool:
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status == 429 or status >= 500:
        wait = retry_after(response.headers.get("retry-after"))
        if wait > LONGEST_WAIT_S:
            raise Refused(f"status {status}, and not again for {wait:.0f} s", url, "try again later")
        raise NotYet(f"status {status}", wait)
    if status != 200:
        raise Refused(f"status {status}", url, "check the address")


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float:
    """Seconds that a Retry-After asks for, given as seconds or as a date; 0 where it says nothing readable."""
    if value is None:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now())
    return 0.0


def _unpacked(unpack: Any, chunk: bytes, limit: int) -> bytes:
    try:
        return unpack.decompress(chunk, limit)
    except zlib.error as error:
        raise NotYet(f"broken compression: {error}") from None


class _Bucket:
    """A rate that all threads share: each takes its turn in time."""

    def __init__(self, per_s: float, clock: Clock) -> None:
        self.per_s, self.clock = per_s, clock
        self._lock, self._free_at = threading.Lock(), 0.0

    def take(self, amount: int) -> None:
        with self._lock:
            now = self.clock.now()
            self._free_at = max(self._free_at, now) + amount / self.per_s
            wait = self._free_at - now
        if wait > 0:
            self.clock.sleep(wait)


# --- connections ------------------------------------------------------------------------------------------------------


class _Transport(httpx.HTTPTransport):
    """httpx's transport on a pool whose connections are checked."""

    def __init__(self, backend: httpcore.NetworkBackend, trust: ssl.SSLContext, rules: Rules) -> None:
        super().__init__(verify=trust)
        self._pool.close()
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            max_connections=rules.media_connections + 1,
            keepalive_expiry=15,
            http1=True,
            http2=True,
            network_backend=backend,
        )


class _Checked(httpcore.NetworkBackend):
    """Connects to public addresses only, and to the very address that was checked."""

    def __init__(self, rules: Rules, resolve: Callable[[str, int], Iterable[str]], left: Callable[[], float]) -> None:
        self.rules, self.resolve, self.left = rules, resolve, left
        self.plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        found = list(self.resolve(host, port))
        if f"{host}:{port}" not in self.rules.let_in:
            for address in found:
                if not _is_public(address):
                    raise Refused(f"{host} is at {address}, which is no public address", host, "leave it out")
        if not found:
            raise httpcore.ConnectError(f"{host} has no address")
        seconds = max(0.01, min(timeout or CONNECT_S, self.left()))
        stream = self.plain.connect_tcp(found[0], port, seconds, local_address, socket_options)
        return _Timed(stream, self.left)

    def sleep(self, seconds: float) -> None:
        self.plain.sleep(seconds)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None)
    return ip.is_global and not ip.is_multicast and (mapped is None or mapped.is_global)


def _addresses(host: str, port: int) -> Iterator[str]:
    try:
        for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            yield str(address[0])
    except socket.gaierror as error:
        raise httpcore.ConnectError(f"{host}: {error}") from None


class _Timed(httpcore.NetworkStream):
    """A stream whose reads end with the thread's deadline, so that headers that drip end as well."""

    def __init__(self, stream: httpcore.NetworkStream, left: Callable[[], float]) -> None:
        self.stream, self.left = stream, left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self._seconds(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self._seconds(timeout, httpcore.WriteTimeout))

    def _seconds(self, timeout: float | None, late: type[Exception]) -> float:
        left = self.left()
        if left <= 0:
            raise late("deadline")
        return min(timeout if timeout is not None else READ_S, left)

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        seconds = self._seconds(timeout, httpcore.ConnectTimeout)
        return _Timed(self.stream.start_tls(ssl_context, server_hostname, seconds), self.left)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
