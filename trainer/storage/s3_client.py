"""The `minio` client with firstsight's own care on each request: retries that re-sign, response checks, and proxies.

Everything that uses minio's private functions is here: `_url_open`, through which all of its requests go, is wrapped,
so that each of them (a part, a page of a listing) is retried for as long as is allowed, with the current keys, date and signature;
 and `_put_object`, which takes headers that `put_object` does not.
"""

import base64
import hashlib
import io
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.datatypes import ListMultipartUploadsResult, Part
from minio.error import S3Error
from urllib3 import BaseHTTPResponse, HTTPHeaderDict, HTTPResponse, PoolManager, ProxyManager
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ProtocolError, ProxyError, SSLError

from trainer.errors import InputError, RunError
from trainer.storage.retries import Retries
from trainer.storage.s3_answers import EXPIRED_CODES, KEY_CODES, Damaged, Passing, Stranger, check_answer, error_of, is_known, printable
from trainer.storage.s3_settings import Renewed, S3Settings, provider

_FIRST_CONTACT_SECONDS = 30.0  # an endpoint that has never responded is soon considered wrong
_ABORT_SECONDS = 5.0  # cleaning up after a failure must not double the wait
_MAX_BODY_BYTES = 64 << 20  # limit for any response except an object: a page of a listing is about 2 MB
_FINE = (200, 204, 206)

logging.getLogger("urllib3.connection").addFilter(lambda record: "Failed to parse headers" not in record.msg)  # with a traceback


class Connections(PoolManager):
    """Keep-alive connections to one endpoint, through the proxy in the settings, if any; each call is a single attempt."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        timeout = urllib3.Timeout(connect=min(10.0, settings.timeout_seconds), read=settings.timeout_seconds)
        options: dict[str, Any] = {"num_pools": 4, "maxsize": 32, "timeout": timeout, "retries": False}
        options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": settings.ca_file}
        super().__init__(**options)
        self._pool: PoolManager | None = None
        self.where = settings.endpoint  # as messages name it
        if settings.proxy:
            parts = urlsplit(settings.proxy)
            keys = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
            host = parts.netloc.rpartition("@")[2]
            headers = urllib3.make_headers(proxy_basic_auth=keys)
            self._pool = ProxyManager(f"{parts.scheme}://{host}", proxy_headers=headers, **options)
            self.where += f" (through the proxy {parts.scheme}://{host} of {settings.proxy_variable})"
        self.answered = False
        self.clock_offset = 0.0  # offset of the store's clock from this machine's, in seconds, from its last response

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """One request; the body is read unless it is to be streamed and the status indicates success.

        Raises:
            InputError: the endpoint's name does not exist, its TLS is not trusted, or a proxy refuses, so that waiting would not help.
            RunError: the connection failed.
        """
        streamed = not options.pop("preload_content", True)
        options |= {"redirect": False, "preload_content": False, "decode_content": False}
        try:
            response = self._pool.urlopen(method, url, **options) if self._pool else super().urlopen(method, url, **options)
            if not (streamed and response.status in (200, 206)):
                response = _read(response, method)
        except (HTTPError, OSError) as error:
            self._fail(error)
        except ValueError:  # the error's text quotes the header
            raise InputError("the request has a header or a path that HTTP does not allow") from None
        if response.status == 407:
            raise InputError(f"{self.where}: the proxy requires a different user and password: {self.settings.proxy_variable}")
        self.answered = True
        with suppress(TypeError, ValueError):  # no date, or an unreadable one
            self.clock_offset = parsedate_to_datetime(response.headers.get("date", "")).timestamp() - time.time()
        return response

    def clear(self) -> None:
        """Close all connections."""
        super().clear()
        if getattr(self, "_pool", None):
            self._pool.clear()  # type: ignore[union-attr]

    def _fail(self, error: Exception) -> NoReturn:
        cause = error.original_error if isinstance(error, ProxyError) else error
        words = _words(cause)
        if isinstance(error, ProxyError) and (refused := re.search(r"Tunnel connection failed: (4\d\d [\w ]*)", words)):
            raise InputError(f"{self.where}: the proxy responded {refused[1].strip()}") from error
        if self._is_wrong(cause):
            raise InputError(f"{words} (endpoint {self.where})") from error
        raise UnreachableError(f"{self.where} cannot be reached: {words}", begun=not isinstance(cause, NewConnectionError)) from error

    def _is_wrong(self, error: Exception) -> bool:
        """Whether waiting cannot help: an unknown host (unless it answered before), a certificate, https:// to a plain HTTP port."""
        if isinstance(error, NameResolutionError):
            reason = error.__cause__
            return not self.answered and isinstance(reason, socket.gaierror) and reason.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        reason = error.args[0] if isinstance(error, SSLError) and error.args else error
        return isinstance(reason, ssl.SSLCertVerificationError) or getattr(reason, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")


class UnreachableError(RunError):
    """The connection could not be made (`begun` is False) or broke."""

    def __init__(self, message: str, *, begun: bool) -> None:
        super().__init__(message)
        self.begun = begun


class Client(Minio):
    """A client of one endpoint for one process; safe to use from several threads."""

    def __init__(self, settings: S3Settings) -> None:
        scheme, _, host = settings.endpoint.partition("://")
        self.settings, self.connections, self._keys = settings, _CheckedConnections(settings), provider(settings)
        super().__init__(host, secure=scheme == "https", region=settings.region, credentials=self._keys, http_client=self.connections)
        if settings.addressing:
            style = self.enable_virtual_style_endpoint if settings.addressing == "virtual" else self.disable_virtual_style_endpoint
            style()  # type: ignore[no-untyped-call]
        self._accepted: Credentials | None = None  # credentials that the store has accepted before
        self._own = threading.local()  # `retries`: of this thread's last request

    def now(self) -> float:
        """POSIX seconds by the store's clock, as of its last response."""
        return time.time() + self.connections.clock_offset

    def put(self, bucket: str, key: str, data: bytes, headers: Mapping[str, str] | None = None, md5: str = "") -> tuple[str, bool]:
        """PUT an object; returns its ETag, and whether that equals the MD5 of `data`, which proves that the server received it intact."""
        return self._checked_put(bucket, key, data, md5, headers, None)

    def put_part(self, bucket: str, key: str, data: bytes, upload_id: str, number: int, md5: str) -> tuple[str, bool]:
        """PUT one part of an upload, as `put`."""
        return self._checked_put(bucket, key, data, md5, None, {"partNumber": str(number), "uploadId": upload_id})

    def begin_upload(self, bucket: str, key: str) -> tuple[str, bool]:
        """Begin a multipart upload; returns its id, and whether no other can have been begun by a request whose answer got lost."""
        upload_id = self._create_multipart_upload(bucket, key, {})
        return upload_id, not self._own.retries.failures

    def copy_part(self, bucket: str, key: str, headers: Mapping[str, Any], upload_id: str, number: int) -> str:
        """Make a part of an upload from a range of an object, which the headers name; its ETag."""
        return self._upload_part_copy(bucket, key, upload_id, number, dict(headers))[0].replace('"', "")

    def complete_upload(self, bucket: str, key: str, upload_id: str, etags: list[str]) -> str:
        """Make the object of the parts sent; its ETag."""
        parts = [Part(number, etag) for number, etag in enumerate(etags, start=1)]
        return self._complete_multipart_upload(bucket, key, upload_id, parts).etag or ""

    def abort_upload(self, bucket: str, key: str, upload_id: str) -> None:
        """End an upload and drop its parts; a missing one is not an error."""
        try:
            self._abort_multipart_upload(bucket, key, upload_id)
        except S3Error as error:
            if error.code != "NoSuchUpload":
                raise

    def list_uploads(self, bucket: str, key: str) -> list[str]:
        """The ids of the uploads of this key that were begun and not ended."""
        found: ListMultipartUploadsResult = self._list_multipart_uploads(bucket, prefix=key)
        return [upload.upload_id for upload in found.uploads if upload.object_name == key and upload.upload_id]

    def _checked_put(
        self, bucket: str, key: str, data: bytes, md5: str, headers: Mapping[str, str] | None, query: dict[str, Any] | None
    ) -> tuple[str, bool]:
        md5 = md5 or hashlib.md5(data, usedforsecurity=False).hexdigest()
        checksum = base64.b64encode(bytes.fromhex(md5)).decode()
        sent: dict[str, Any] = {"Content-Type": "application/octet-stream", **(headers or {}), "Content-MD5": checksum}
        etag = self._put_object(bucket, key, data, sent, query).etag or ""
        return etag, etag.lower() == md5

    def _url_open(  # the arguments are minio's
        self,
        method: str,
        region: str,
        bucket_name: str | None = None,
        object_name: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, Any] | None = None,
        query_params: Mapping[str, Any] | None = None,
        preload_content: bool = True,
        no_body_trace: bool = False,
    ) -> BaseHTTPResponse:
        """One minio request, retried as long as the failure may be transient.

        Raises:
            S3Error: the store refuses.
            InputError: the endpoint is not a store, or cannot be reached with these settings.
            RunError: the time for retries has passed.
        """
        query, sent = dict(query_params or {}), dict(headers or {})
        retries = self._own.retries = Retries(_ABORT_SECONDS if method == "DELETE" and "uploadId" in query else self.settings.retry_seconds)
        doubted = ""  # a response that ends the retries if it is received twice
        while True:
            keys = self._current_keys(retries)
            try:
                try:
                    response = super()._url_open(
                        method, region, bucket_name, object_name, body, dict(sent), dict(query), preload_content, no_body_trace
                    )
                    check_answer(method, object_name, query, "x-amz-copy-source" in sent, response, streamed=not preload_content)
                except _AnsweredError as answered:
                    raise self._error_of(method, region, bucket_name, object_name, answered.response) from None
                self._accepted = keys
                return response
            except UnreachableError as error:
                first = None if self.connections.answered or error.begun else _FIRST_CONTACT_SECONDS
                retries.wait(str(error), seconds=first)
            except Damaged as error:
                first = _FIRST_CONTACT_SECONDS if self._accepted is None else None
                retries.wait(f"{self.connections.where} answers {error}", seconds=first)
            except Passing as error:
                skewed = "RequestTimeTooSkewed" in str(error)
                first = _FIRST_CONTACT_SECONDS if skewed and self._accepted is None else None
                clocks = f" ({self._clocks()})" if skewed else ""
                retries.wait(f"{self.connections.where} answers {error}{clocks}", at_least=error.pause, seconds=first)
            except Stranger as error:
                if self._accepted is None and doubted == str(error):
                    raise InputError(f"the server at {self.connections.where} is not an S3 store: it responded {error}") from None
                doubted = str(error)
                retries.wait(f"{self.connections.where} answers {error}")
            except S3Error as error:
                code = error.code or ""
                passing = self._passes(code, keys)
                certain = is_known(code) and not (code in KEY_CODES and self._accepted)
                if not passing and (certain or doubted == code):
                    if code not in KEY_CODES | EXPIRED_CODES | {"AccessDenied"}:
                        self._accepted = keys
                    raise
                doubted = code
                retries.wait(f"{self.connections.where} answers {passing or f'{code}: {error.message}'}")

    def _current_keys(self, retries: Retries) -> Credentials:
        """The current keys; waits for whoever issues them just as for the store."""
        while True:
            try:
                return self._keys.retrieve()
            except RunError as error:
                retries.wait(str(error))

    def _error_of(self, method: str, region: str, bucket: str | None, key: str | None, response: BaseHTTPResponse) -> S3Error:
        """The error that an answer stands for; a HEAD has no body that says who refused it and why, so the object is requested with GET."""
        try:
            return error_of(method, key, response)
        except Stranger:
            if method != "HEAD" or not key:
                raise
        try:
            self._url_open("GET", region, bucket, key, headers={"Range": "bytes=0-0"})
        except S3Error as error:
            if error.code not in ("InvalidRange", "NoSuchKey") or (error.code == "NoSuchKey" and response.status == 404):
                return error
        raise Passing(f"{response.status} to HEAD, but not to GET")

    def _passes(self, code: str, keys: Credentials) -> str:
        """What to wait for after this rejection of the keys, in words; empty if waiting would not help."""
        if code not in EXPIRED_CODES | KEY_CODES or not isinstance(self._keys, Renewed):
            return ""
        if code in EXPIRED_CODES or self._accepted:
            self._keys.renew(keys)
        try:
            if self._keys.retrieve() is not keys:
                return f"{code}; {self._keys.source} has new keys"
        except RunError as error:
            return f"{code}; {error}"
        file = self._keys.trouble or self._keys.source
        return f"{code}; waiting for new keys in {file}" if code in EXPIRED_CODES or self._accepted else ""

    def _clocks(self) -> str:
        ours, theirs = (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment)) for moment in (time.time(), self.now()))
        return f"this machine's clock says {ours} UTC, the store's {theirs} UTC: one of them is wrong"


class _AnsweredError(Exception):
    """A non-success status, before minio handles it."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        super().__init__()
        self.response = response


class _CheckedConnections(Connections):
    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        response = super().urlopen(method, url, redirect, **options)
        if response.status not in _FINE:
            raise _AnsweredError(response)
        return response


def _read(response: BaseHTTPResponse, method: str) -> BaseHTTPResponse:
    """The same response with its body in memory; an endless body is an error."""
    try:
        data = response.read(_MAX_BODY_BYTES + 1)
        if len(data) > _MAX_BODY_BYTES:
            raise ProtocolError(f"a response of more than {_MAX_BODY_BYTES >> 20} MiB")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return HTTPResponse(
        body=io.BytesIO(data),
        headers=HTTPHeaderDict(response.headers),
        status=response.status,
        reason=response.reason,
        decode_content=False,
        enforce_content_length=False,
        request_method=method,
    )


def _words(error: BaseException) -> str:
    """The cause of a connection's failure in one line, without urllib3's object addresses."""
    if isinstance(error, NameResolutionError):
        return "no such host"
    reason = error.args[0] if isinstance(error, SSLError) and error.args else error.__cause__ or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted ({reason.verify_message}): set FIRSTSIGHT_S3_CA to its CA"
    if getattr(reason, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "it does not speak TLS: use http:// or another port"
    text = str(reason or error) or type(error).__name__
    return printable(re.sub(r"<[^>]* object at [^>]*>:? ?|^HTTPS?Connection(Pool)?\([^)]*\):? ?", "", text))
