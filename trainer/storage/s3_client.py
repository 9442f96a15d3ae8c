"""How an S3 endpoint is found in the environment, and the connections to it, which wait an outage out.

Retries live here, below the `minio` client, so that each of its requests (a part, a page of a listing) has them.
"""

import os
import re
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import certifi
import urllib3
from urllib3 import BaseHTTPResponse, PoolManager
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, SSLError

from trainer.errors import InputError
from trainer.storage.retries import PASSING_STATUSES, Retries, retry_after

_RETRIED = PASSING_STATUSES | {307}
_FIRST_CONTACT_SECONDS = 30.0  # an endpoint that never answered is soon taken for a wrong one
_ABORT_SECONDS = 5.0  # tidying up after a failure must not double the wait for it


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where the store is and how long it is waited for.

    Attributes:
        endpoint: URL without a path.
        region: that requests are signed for.
        access_key: empty where the keys come from `credentials_file`.
        secret_key: likewise.
        session_token: of temporary keys, or empty.
        credentials_file: an AWS credentials file (a mounted secret), read again whenever it changes, or empty.
        ca_file: certificates that TLS trusts.
        addressing: path, virtual, or empty for what the endpoint is used to.
        retry_seconds: how long one request is tried again.
        timeout_seconds: without a byte, after which a connection counts as broken.
    """

    endpoint: str
    region: str
    access_key: str
    secret_key: str
    session_token: str
    credentials_file: str
    ca_file: str
    addressing: str
    retry_seconds: float
    timeout_seconds: float


def settings_from_environment(uri: str) -> S3Settings:
    """Read AWS_* and FIRSTSIGHT_S3_*; `uri` is named in errors.

    Raises:
        InputError: no credentials, or a value that cannot be meant.
    """
    get = os.environ.get
    region = get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InputError(f"{uri}: AWS_ENDPOINT_URL must be http(s)://host[:port] and nothing more, got {endpoint!r}")
    access_key, secret_key, credentials_file = get("AWS_ACCESS_KEY_ID", ""), get("AWS_SECRET_ACCESS_KEY", ""), ""
    if not (access_key and secret_key):
        credentials_file = get("AWS_SHARED_CREDENTIALS_FILE", "")
        if not credentials_file:
            raise InputError(
                f"{uri}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL, unless it is AWS)"
            )
    ca_file = get("FIRSTSIGHT_S3_CA") or get("AWS_CA_BUNDLE") or certifi.where()
    for name, file in (("FIRSTSIGHT_S3_CA or AWS_CA_BUNDLE", ca_file), ("AWS_SHARED_CREDENTIALS_FILE", credentials_file)):
        if file and not os.path.isfile(file):
            raise InputError(f"{uri}: {name} names {file}, which is no file")
    addressing = get("FIRSTSIGHT_S3_ADDRESSING", "")
    if addressing not in ("", "path", "virtual"):
        raise InputError(f"FIRSTSIGHT_S3_ADDRESSING must be path or virtual, got {addressing!r}")
    return S3Settings(
        endpoint=f"{parts.scheme}://{parts.netloc}",
        region=region,
        access_key=access_key,
        secret_key=secret_key,
        session_token=get("AWS_SESSION_TOKEN", ""),
        credentials_file=credentials_file,
        ca_file=ca_file,
        addressing=addressing,
        retry_seconds=_seconds("FIRSTSIGHT_S3_RETRY_SECONDS", 300.0),
        timeout_seconds=_seconds("FIRSTSIGHT_S3_TIMEOUT_SECONDS", 60.0),
    )


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise InputError(f"{name} must be seconds >= 0, got {text!r}")
    return value


class RetryingPool(PoolManager):
    """Kept-alive connections to one endpoint; what may pass (5xx, 429, resets, time-outs) is tried again."""

    def __init__(self, settings: S3Settings) -> None:
        timeout = urllib3.Timeout(connect=min(10.0, settings.timeout_seconds), read=settings.timeout_seconds)
        super().__init__(num_pools=4, maxsize=32, timeout=timeout, retries=False, cert_reqs="CERT_REQUIRED", ca_certs=settings.ca_file)
        self._settings = settings
        self._answered = False
        self.clock_offset = 0.0  # of the store's clock against this machine's, in seconds, by its last answer

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """One request with its retries; bodies are bytes, so each try sends the same. Redirects are never followed.

        Raises:
            InputError: the endpoint's name does not exist, or its TLS is not trusted: waiting would not help.
            RunError: the time for retries has passed.
        """
        retries = Retries(_ABORT_SECONDS if method == "DELETE" and "uploadId=" in url else self._settings.retry_seconds)
        while True:
            try:
                response = super().urlopen(method, url, redirect=False, **options)
            except (HTTPError, OSError) as error:
                if self._is_wrong(error):
                    raise InputError(f"{_words(error)} (endpoint {self._settings.endpoint})") from error
                first = None if self._answered or not isinstance(error, NewConnectionError) else _FIRST_CONTACT_SECONDS
                retries.wait(f"{self._settings.endpoint} cannot be reached: {_words(error)}", seconds=first)
                continue
            self._answered = True
            with suppress(TypeError, ValueError):  # no date, or none that can be read
                self.clock_offset = parsedate_to_datetime(response.headers.get("date", "")).timestamp() - time.time()
            if response.status not in _RETRIED:
                return response
            code = re.search(rb"<Code>([^<]*)</Code>", response.data or b"")
            said = f"{response.status} {code[1].decode(errors='replace') if code else response.reason or ''}".strip()
            pause = retry_after(response.headers.get("retry-after", ""), most=30.0)
            response.drain_conn()
            retries.wait(f"{self._settings.endpoint} answers {said}", at_least=pause)

    def _is_wrong(self, error: Exception) -> bool:
        """Whether no wait can help: an unknown host (unless it answered before), a certificate, plain HTTP behind https."""
        if isinstance(error, NameResolutionError):
            reason = error.__cause__
            return not self._answered and isinstance(reason, socket.gaierror) and reason.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        reason = error.args[0] if isinstance(error, SSLError) and error.args else None
        return isinstance(reason, ssl.SSLCertVerificationError) or getattr(reason, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST")


def _words(error: BaseException) -> str:
    """The cause of a connection's failure in one line, without urllib3's object addresses."""
    if isinstance(error, NameResolutionError):
        return "no such host"
    reason = error.args[0] if isinstance(error, SSLError) and error.args else error.__cause__
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted ({reason.verify_message}): name its CA in FIRSTSIGHT_S3_CA"
    if getattr(reason, "reason", "") in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "it does not speak TLS: use http:// or another port"
    text = str(reason or error) or type(error).__name__
    return re.sub(r"<[^>]* object at [^>]*>:? ?|^HTTPS?Connection(Pool)?\([^)]*\):? ?", "", text)
