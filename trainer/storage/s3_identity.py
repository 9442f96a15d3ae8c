"""Credentials from a cloud's workload identity, through minio's own provider, which exchanges the pod's token for keys.

AWS_WEB_IDENTITY_TOKEN_FILE (IAM roles for service accounts) is taken to the STS, AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS pod
identity) to the node's agent. The metadata address of the node is never asked: its rights are the same for every tenant.
"""

import datetime
import json
import os
import re
import threading
import time
from typing import Any

from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider
from urllib3 import BaseHTTPResponse

from trainer.errors import InputError, RunError
from trainer.storage.s3_answers import printable
from trainer.storage.s3_client import Connections
from trainer.storage.s3_settings import Renewed, S3Settings, identity_settings

RENEW_SECONDS = 300.0
"""Keys are renewed this long before they expire: a short outage of the STS then goes unnoticed."""
_PAUSE_SECONDS = 10.0
"""Between two tries to renew keys that are still good."""
_PASSING_CODES = {"IDPCommunicationError", "InternalFailure", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestExpired"}


class WorkloadIdentity(Renewed):
    """Temporary keys, renewed before they expire; safe to use from several threads."""

    def __init__(self, settings: S3Settings) -> None:
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._tried = -_PAUSE_SECONDS
        self._connections = _Asking(identity_settings(settings))
        self.source = self._connections.where

    def retrieve(self) -> Credentials:
        """Keys that are good for a while.

        Raises:
            InputError: the cloud refuses, or the token's file is missing: waiting would not help.
            RunError: it does not answer for now, and there are no keys that are still good.
        """
        with self._lock:
            gone = self._credentials is None or _is_due(self._credentials, 0.0)
            paused = time.monotonic() - self._tried < _PAUSE_SECONDS
            if self._credentials is None or gone or (_is_due(self._credentials, RENEW_SECONDS) and not paused):
                self._tried = time.monotonic()
                try:
                    self._credentials, self.trouble = self._fetch(), ""
                except (InputError, RunError) as error:
                    self.trouble = str(error)
                    if self._credentials is None or gone:
                        raise
            return self._credentials

    def renew(self, rejected: Credentials) -> None:
        """Take other keys the next time, since the store rejects these, unless they were changed meanwhile."""
        with self._lock:
            if self._credentials is rejected:
                self._credentials = None

    def _fetch(self) -> Credentials:
        endpoint = self._connections.settings.endpoint if os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") else None
        try:
            return IamAwsProvider(custom_endpoint=endpoint, http_client=self._connections).retrieve()
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"credentials of this pod's account: {error.filename}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, SyntaxError) as error:  # minio's; their words may quote the token
            said = f": {error}" if str(error).startswith(("error in reading file ", "Host ")) or "loopback" in str(error) else ""
            raise InputError(f"credentials of this pod's account: {self._connections.where} returned none{said}") from None


def _is_due(credentials: Credentials, seconds: float) -> bool:
    """Whether keys expire within that time."""
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return credentials.expiration is not None and credentials.expiration < now + datetime.timedelta(seconds=max(seconds, 15.0))


class _Asking(Connections):
    """Connections to the issuer of keys; a refusal is a one-line error, without the token in its URL."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        response = super().urlopen(method, url, redirect, **options)
        if response.status == 200:
            return response
        said = ": ".join(part for part in _error_of(response.data) if part)
        code = said.partition(":")[0]
        line = f"credentials of this pod's account: {self.where} answers {response.status} {said}".rstrip()
        if response.status >= 500 or response.status == 429 or code in _PASSING_CODES:
            raise RunError(line)
        raise InputError(
            f"{line}: check the role's trust policy and the service account's annotation (docs/OPERATIONS.md, Workload identity)"
        )


def _error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an answer in XML (STS) or JSON (the agent)."""
    text = body[:4096].decode(errors="replace")
    try:
        value = json.loads(text)
        found = [str(value.get(key, value.get(key.lower(), ""))) for key in ("Code", "Message")] if isinstance(value, dict) else ["", text]
    except ValueError:
        found = [(re.search(rf"<{key}>([^<]*)</{key}>", text) or ["", ""])[1] for key in ("Code", "Message")]
        if not any(found):
            found = ["", text]
    return printable(found[0])[:80], printable(" ".join(found[1].split()))[:200]
