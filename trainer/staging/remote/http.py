"""Fetch over HTTP, fast but politely: bounded per host, with back-off and a contact, and never from a private address.

Any failure of one URL is a FetchError with a short cause, by which rejects are counted. If nothing responds any more, the
URLs are not at fault: an OutageError ends the slice, which can then be run again.
"""

import contextlib
import http.client
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from trainer.errors import InputError, RunError
from trainer.redaction import holds_credentials, without_signatures
from trainer.staging.remote.addresses import PrivateAddressError
from trainer.staging.remote.patience import patient_pool
from trainer.storage.base import absolute
from trainer.storage.retries import PASSING_STATUSES, Backoff, retry_after

_REDIRECTS = 5
_DEAD_AFTER = 8  # failures to connect in a row, after which a host is not asked again
_OUTAGE_AFTER = 100  # failures in a row over all hosts, after which the network is considered down
_PIECE = 1 << 16
_DRAIN_SECONDS = 1.0  # for the body of a refusal, so that its connection can be used again
_PASSING_CAUSES = ("timeout", "connect", "dns", "cut short", "wrong range")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$")
_WEB = re.compile(r"https?://((?:[^\s/?#@\[\]\\]+|\[[0-9a-fA-F:.]+\])(?::\d+)?)(?:[/?#]\S*)?$", re.IGNORECASE)


class FetchError(Exception):
    """A URL could not be fetched; `cause` is a short phrase, `detail` says more."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        self.detail = without_signatures(detail)
        super().__init__(f"{cause}: {self.detail}")

    def as_failure(self, uri: str) -> InputError | RunError:
        """What it means for a command that needs this URI: wrong input, or a failure that may pass."""
        status = int(self.cause.removeprefix("http ")) if self.cause.startswith("http ") else 0
        passing = self.cause in _PASSING_CAUSES or status in PASSING_STATUSES or status >= 500
        return (RunError if passing else InputError)(f"{uri}: {self}")


@dataclass(frozen=True)
class Part:
    """A server's response: its bytes and, for a range, the size of the whole file (0: unknown)."""

    data: bytes
    total: int


_Span = tuple[int, int] | None  # first byte and length, or all


class OutageError(RunError):
    """Nothing responds: the network, or the only server in use, is down."""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """How one process behaves towards the servers it asks.

    Attributes:
        contact: e-mail address or URL of the operator, sent to every server.
        per_host: concurrent requests per host.
        tries: attempts per URL if the failure may be temporary.
        connect_seconds: time to make a connection.
        read_seconds: time without receiving a byte.
        total_seconds: time for one attempt, however slowly bytes arrive.
        max_bytes: size of one response.
        backoff_seconds: the first pause after 429 or 5xx, doubled each time.
    """

    contact: str = ""
    per_host: int = 16
    tries: int = 4
    connect_seconds: float = 10.0
    read_seconds: float = 20.0
    total_seconds: float = 60.0
    max_bytes: int = 32 << 20
    backoff_seconds: float = 1.0

    def __post_init__(self) -> None:
        """Check settings that would break every request."""
        check_contact(self.contact)


def check_contact(contact: str) -> str:
    """`contact` if it can be in a header; InputError if not."""
    if not (contact.isascii() and contact.isprintable()):
        raise InputError(f"--contact must be printable ASCII, such as mailto:you@example.org, got {contact!r}")
    return contact


class _Host:
    """The state of one host: free request slots, and recent failures."""

    def __init__(self, slots: int) -> None:
        self.slots = threading.BoundedSemaphore(slots)
        self.not_before = 0.0  # monotonic; it asked for a pause
        self.failed_connects = 0
        self.dead = ""  # cause


class PoliteClient:
    """Shared by the threads of one process."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        contact = f"; +{settings.contact}" if settings.contact else ""
        self._headers = {
            "User-Agent": f"firstsight/0.1 (image fetcher{contact})",
            "Accept": "image/*,*/*;q=0.5",
            "Accept-Encoding": "identity",
        }
        timeout = urllib3.Timeout(connect=settings.connect_seconds, read=settings.read_seconds)
        self._pool = patient_pool(settings.total_seconds, num_pools=256, maxsize=settings.per_host, timeout=timeout, retries=False)
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()
        self._failures_in_a_row = 0

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def get(self, url: str) -> bytes:
        """The bytes at a URL, following redirects within the web.

        Raises:
            FetchError: this URL failed.
            OutageError: every URL fails.
        """
        return self._follow(url, None).data

    def get_range(self, url: str, start: int, length: int) -> Part:
        """At most `length` bytes from `start` (fewer at the end of the file); FetchError if the server does not support ranges."""
        return self._follow(url, (start, length))

    def _follow(self, url: str, span: _Span) -> Part:
        first = url
        for _ in range(_REDIRECTS + 1):
            host = self._host(url)
            answer = self._retry(host, url, span)
            if isinstance(answer, Part):
                return answer
            url = follow(url, answer)
        raise FetchError("bad redirect", f"{first}: more than {_REDIRECTS} redirects")

    def _host(self, url: str) -> _Host:
        name = host_of(url)
        with self._lock:
            return self._hosts.setdefault(name, _Host(self.settings.per_host))

    def _retry(self, host: _Host, url: str, span: _Span) -> Part | str:
        """The requested part, or the target of a redirect."""
        backoff = Backoff(self.settings.backoff_seconds, most=math.inf)
        for attempt in range(1, self.settings.tries + 1):
            if host.dead:
                self._failed(url, host.dead)
                raise FetchError(host.dead, f"{url}: skipped, because its host failed {_DEAD_AFTER} times in a row")
            with host.slots:
                self._pause_until(host.not_before)
                error, passing, pause = self._once(host, url, span)
            if not isinstance(error, FetchError):
                return error
            last = attempt == self.settings.tries
            if not passing or last:
                if passing:
                    self._failed(url, error.cause)
                raise error
            delay = max(pause, backoff.seconds())
            if error.cause in ("http 429", "http 503"):  # the host itself is busy: everybody waits
                host.not_before = max(host.not_before, time.monotonic() + delay)
            else:
                time.sleep(delay)
        raise AssertionError

    def _once(self, host: _Host, url: str, span: _Span) -> tuple[Part | str | FetchError, bool, float]:
        """One try: its result, whether another may succeed, and the pause that the host asked for."""
        try:
            with self._answer(url, span) as response:
                self._answered(host, response.status)
                if response.status in (301, 302, 303, 307, 308):
                    return response.headers.get("location", ""), False, 0.0
                if response.status == 200 and span:
                    return FetchError("no ranges", f"{url}: its server returned the whole file"), False, 0.0
                if response.status != (206 if span else 200):
                    passing = response.status in PASSING_STATUSES or response.status >= 500
                    pause = retry_after(response.headers.get("retry-after", ""), most=60.0)
                    return FetchError(f"http {response.status}", url), passing, pause
                return self._range(response, url, *span) if span else Part(self._body(response, url), 0), False, 0.0
        except FetchError as error:
            return error, error.cause in _PASSING_CAUSES, 0.0
        except PrivateAddressError as error:
            return FetchError("private address", f"{url}: {error}"), False, 0.0
        except LocationParseError as error:
            return FetchError("bad URL", f"{url[:200]}: {error}"), False, 0.0
        except (HTTPError, OSError, http.client.HTTPException) as error:
            cause = _cause(error)
            if cause in ("dns", "connect"):
                host.failed_connects += 1
                if host.failed_connects >= _DEAD_AFTER:
                    host.dead = cause
            return FetchError(cause, f"{url}: {type(error).__name__}"), not _is_final(error), 0.0

    @contextlib.contextmanager
    def _answer(self, url: str, span: _Span) -> Iterator[urllib3.BaseHTTPResponse]:
        """A response whose body is read in pieces; a connection that was read to its end is reused."""
        headers = {**self._headers, "Range": f"bytes={span[0]}-{sum(span) - 1}"} if span else self._headers
        response = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False, retries=False)
        try:
            yield response
            if response.status == (206 if span else 200):
                response.release_conn()
            else:
                _drain(response)
        finally:
            if response.connection is not None:  # still in mid-body: the rest is not worth reading
                response.close()

    def _range(self, response: urllib3.BaseHTTPResponse, url: str, start: int, length: int) -> Part:
        """Exactly the requested part of a file."""
        said = response.headers.get("content-range", "")
        found = _RANGE.match(said)
        first, last, total = (int(group) if group.isdecimal() else 0 for group in found.groups()) if found else (-1, -1, 0)
        if first != start or not first <= last < start + length or (total and last >= total):
            raise FetchError("wrong range", f"{url}: requested {length} bytes from {start}, but the response has {said[:100]!r}")
        data = self._body(response, url)
        if len(data) != last - first + 1:
            cause = "cut short" if len(data) < last - first + 1 else "wrong range"
            raise FetchError(cause, f"{url}: {len(data)} bytes, the answer says {said}")
        return Part(data, total)

    def _body(self, response: urllib3.BaseHTTPResponse, url: str) -> bytes:
        """The body, as long as it stays within size and time."""
        limit, deadline = self.settings.max_bytes, time.monotonic() + self.settings.total_seconds
        announced = announced_length(response)
        if announced is not None and announced > limit:
            raise FetchError("too many bytes", f"{url}: {announced}, at most {limit}")
        pieces, size = [], 0
        while piece := response.read1(_PIECE, decode_content=False):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise FetchError("too many bytes", f"{url}: at most {limit}")
            if time.monotonic() > deadline:
                raise FetchError("timeout", f"{url}: {size} bytes in {self.settings.total_seconds:g} s")
        return b"".join(pieces)

    def _pause_until(self, moment: float) -> None:
        left = moment - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _answered(self, host: _Host, status: int) -> None:
        host.failed_connects = 0
        if status < 500 and status != 429:
            self._failures_in_a_row = 0

    def _failed(self, url: str, cause: str) -> None:
        with self._lock:
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= _OUTAGE_AFTER:
                raise OutageError(
                    f"{url}: {self._failures_in_a_row} URLs in a row failed ({cause}): the network or the server is down; "
                    "run the same command again"
                )


def announced_length(response: urllib3.BaseHTTPResponse) -> int | None:
    """Content-Length; None if there is none that can be believed."""
    text = response.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def _drain(response: urllib3.BaseHTTPResponse) -> None:
    """Read and discard a short body, ignoring errors, so that its connection can be reused."""
    length, deadline = announced_length(response), time.monotonic() + _DRAIN_SECONDS
    if length is not None and length <= _PIECE:
        with contextlib.suppress(HTTPError, OSError, http.client.HTTPException):
            while response.read1(_PIECE, decode_content=False) and time.monotonic() < deadline:
                pass


def _cause(error: Exception) -> str:
    if isinstance(error, NameResolutionError):
        return "dns"
    if isinstance(error, SSLError):
        return "tls"
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return "connect"
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return "timeout"
    return "cut short"


def _is_final(error: Exception) -> bool:
    """Whether retrying is pointless: an unknown host name or an invalid certificate."""
    if isinstance(error, NameResolutionError):
        reason = error.__cause__
        return isinstance(reason, socket.gaierror) and reason.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
    return isinstance(error, SSLError) and bool(error.args) and isinstance(error.args[0], ssl.SSLCertVerificationError)


def is_web(uri: str) -> bool:
    """Whether a URI is http or https."""
    return uri[:8].lower().startswith(("http://", "https://"))


def base_of(option: str, uri: str) -> str:
    """A base URI to which paths can be appended; InputError if it is not one, or contains credentials."""
    if is_web(uri) and (holds_credentials(uri) or "?" in uri or "#" in uri):
        raise InputError(
            f"{option} {uri}: must be a base URI to which paths can be appended, without user, query or signature: fetch through a mirror, "
            "or list complete URLs"
        )
    return absolute(uri) if uri else ""


def host_of(url: str) -> str:
    """Host and port of a URL in lower case; FetchError if it is not a web URL, or contains a user name."""
    place = _WEB.match(url)
    if not place:
        raise FetchError("bad URL", repr(without_signatures(url)[:200]))
    return place[1].lower()


def follow(url: str, location: str) -> str:
    """The target of a redirect of `url`; FetchError if it is not a web URL. The next connection checks its address."""
    try:
        target = urljoin(url, location)
        allowed = bool(_WEB.match(target))
    except ValueError:  # of something that is not an address
        allowed = False
    if not allowed:
        raise FetchError("bad redirect", f"{url} leads to {without_signatures(location)[:200]!r}")
    return target
