"""One connection to a Kubernetes API server: our identity there, requests that survive its restarts, errors in one line.

Of the `kubernetes` package only the part that reads kubeconfigs and service accounts is used (imported late, since it is
slow to import); what goes over the wire is plain JSON, because its models lag behind the servers and drop fields they do not know.
"""

import contextlib
import http
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.errors import InputError, RunError
from trainer.redaction import without_credentials
from trainer.storage.retries import Backoff, retry_after

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
FIRST_CONTACT_SECONDS = 5.0
"""How long the first request is retried: a wrong address should be reported soon."""
RETRY_SECONDS = 600.0
"""How long later requests are retried while nothing responds: an upgrade of a control plane takes minutes."""
SERVER_ERROR_SECONDS = 60.0
"""How long a server's own errors are retried: it, or a webhook's pod, may be starting."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Unreachable(RunError):
    """The server did not respond, or is temporarily unavailable. A retry may help."""


class Conflict(RunError):
    """The object changed since it was read."""


class Expired(RunError):
    """The server no longer knows the version to continue from: list again."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A request that the server rejected.

    Attributes:
        status: HTTP status.
        message: the server's own words.
        reason: machine-readable, such as NotFound, AlreadyExists, Forbidden.
        kind: of the object that the refusal is about, such as namespaces.
        is_status: whether the API itself answered (else something in front of it did, or there is no such path).
        retry_after: seconds the server asks to wait; 0: none.
    """

    status: int
    message: str
    reason: str = ""
    kind: str = ""
    is_status: bool = False
    retry_after: float = 0.0


class Refused(Exception):
    """Carries a refusal to the caller, which knows what was asked for (pipelines/cluster/connection.py)."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Api:
    """Requests to one server; safe to use from several threads."""

    def __init__(self, configuration: Any, namespace: str, home: str, source: str) -> None:
        """Connect lazily.

        Args:
            configuration: kubernetes.client.Configuration.
            namespace: where objects are unless a call says otherwise.
            home: the namespace of this pod, or of the kubeconfig's context.
            source: for messages: which kubeconfig, or the pod's service account.
        """
        from kubernetes.client import ApiClient

        self.namespace, self.home, self.source, self.server = namespace or home, home, source, str(configuration.host).rstrip("/")
        self.contacted = False
        self.retry_seconds = RETRY_SECONDS
        self._client = ApiClient(configuration)
        self._pool = self._client.rest_client.pool_manager
        self._pool.connection_pool_kw["socket_options"] = _keepalive()
        self._streams: set[Any] = set()
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, namespace: str = "") -> "Api":
        """Connect with KUBECONFIG if it is set, else as the pod's service account, else with the user's kubeconfig.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        from kubernetes import config
        from kubernetes.client import Configuration

        configuration = Configuration()
        in_pod = "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ and os.path.exists(f"{SERVICE_ACCOUNT}/token")
        source = f"service account of {socket.gethostname()}" if in_pod else f"kubeconfig {_kubeconfig()}"
        try:
            if in_pod:
                config.load_incluster_config(client_configuration=configuration)
                with open(f"{SERVICE_ACCOUNT}/namespace") as stream:
                    own = stream.read().strip()
            else:
                config.load_kube_config(config_file=_kubeconfig(), client_configuration=configuration)
                _, active = config.list_kube_config_contexts(config_file=_kubeconfig())
                own = active["context"].get("namespace", "")
                source += f", context {active['name']}"
        except Exception as error:  # the loader lets YAML, OS and key errors through
            raise InputError(f"{source}: it does not define a usable cluster: {' '.join(str(error).split())}") from error
        return cls(configuration, namespace, own or "default", source)

    def call(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None, content: str = "") -> Any:
        """Send a request, retried while the server is unavailable; return the JSON of the response.

        Raises:
            Refused: the server rejected the request.
            InputError: the first request of this connection got no response.
            RunError: a later one got no response for a long time.
        """
        began, backoff = time.monotonic(), Backoff()
        while True:
            try:
                return self.once(method, path, query, body, content)
            except Unreachable as error:
                self._give_up(error, time.monotonic() - began)
                answered = error.__cause__ if isinstance(error.__cause__, Refused) else None
                time.sleep(max(backoff.seconds(), answered.refusal.retry_after if answered else 0.0))

    def once(self, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None, content: str = "") -> Any:
        """Send a request without retrying; return the JSON of the response. Raises Unreachable if a retry may help."""
        response = self._open(method, path, query, body, content, READ_SECONDS)
        try:
            data = response.read()
        except _transport_errors() as error:
            raise Unreachable(f"{self.server}: {_words(error)}") from error
        finally:
            response.release_conn()
        try:
            answer = json.loads(data) if data else {}
        except (ValueError, RecursionError) as error:
            raise Unreachable(f"{self.server}: the response is not that of a Kubernetes API server, or was cut short") from error
        if not isinstance(answer, dict):
            raise Unreachable(f"{self.server}: the server that responds is not a Kubernetes API server")
        return answer

    def versions(self, group: str, plural: str) -> list[str]:
        """The versions of an API group in which the server serves a kind, the preferred one first; empty if it does not serve it.

        Raises:
            InputError: the server does not allow the query.
        """
        found = [str(entry["version"]) for entry in self._discovered(f"/apis/{group}", "versions")]
        return [version for version in found if self.serves(f"{group}/{version}", plural)]

    def serves(self, api_version: str, plural: str) -> bool:
        """Whether the server serves a kind in a version, such as jobs in batch/v1. Raises InputError if it does not allow the query."""
        path = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        return any(one["name"] == plural for one in self._discovered(path, "resources"))

    def _discovered(self, path: str, what: str) -> list[Any]:
        try:
            return list(self.call("GET", path).get(what) or ())
        except Refused as refused:
            if refused.refusal.status == 404:  # no such group, or no longer in this version
                return []
            raise InputError(f"{self.server} does not say what it serves ({path}): {refused.refusal.message} ({self.source})") from refused

    @contextlib.contextmanager
    def lines(
        self, path: str, query: Mapping[str, str], read_seconds: float, stop: threading.Event | None = None
    ) -> Iterator[Iterator[bytes]]:
        """The lines of a streamed response as they arrive; none once `stop` is set.

        A line that a broken connection cut short is dropped, and Unreachable is raised.
        """
        response = self._open("GET", path, query, None, "", read_seconds)
        with self._lock:
            self._streams.add(response)
        try:
            # whoever stops sets it before close_streams, so a stream that opened too late to be closed by it is caught here
            yield iter(()) if stop is not None and stop.is_set() else self._split(response)
        finally:
            with self._lock:
                self._streams.discard(response)
            response.close()

    def close_streams(self) -> None:
        """Break every open stream; their readers get Unreachable and decide what to do."""
        with self._lock:
            for response in list(self._streams):
                with contextlib.suppress(OSError, ValueError, RuntimeError):  # it ended by itself
                    response.shutdown()

    def _split(self, response: Any) -> Iterator[bytes]:
        rest = b""
        try:
            for data in response.stream(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
        except _transport_errors() as error:
            raise Unreachable(f"{self.server}: {_words(error)}") from error
        if rest:
            yield rest

    def _open(self, method: str, path: str, query: Mapping[str, str] | None, body: Any, content: str, read_seconds: float) -> Any:
        from urllib3 import Timeout
        from urllib3.exceptions import SSLError

        headers = {"Accept": "application/json", "User-Agent": "firstsight"}
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        if body is not None:
            headers["Content-Type"] = content or "application/json"
        if method == "POST":  # else the server silently drops a field that it does not know: a volume, a CA, a toleration
            query = {"fieldValidation": "Strict", **(query or {})}
        query_string = f"?{_encode(query)}" if query else ""
        try:
            response = self._pool.request(
                method,
                f"{self.server}{path}{query_string}",
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                retries=False,
                preload_content=False,
            )
            if response.status < 300:
                self.contacted = True
                return response
            data = response.read()
            response.release_conn()
        except SSLError as error:
            raise InputError(f"{self.server} ({self.source}): no trusted connection: {_words(error)}") from error
        except _transport_errors() as error:
            raise Unreachable(f"{self.server}: {_words(error)}") from error
        raise self._refused(_refusal(response.status, data, retry_after(response.headers.get("Retry-After", ""))))

    def _refused(self, refusal: Refusal) -> Exception:
        refused = Refused(refusal)
        if refusal.status == 410:
            return Expired(refusal.message)
        if refusal.status == 429 or refusal.status >= 500:
            unreachable = Unreachable(f"{self.server} answers {refusal.status}: {refusal.message}")
            unreachable.__cause__ = refused
            return unreachable
        if refusal.status == 401:
            return InputError(f"{self.server} rejected the credentials from {self.source}: {refusal.message}")
        return refused

    def _give_up(self, error: Unreachable, waited: float) -> None:
        answered = isinstance(error.__cause__, Refused)
        if not self.contacted and not answered and waited >= FIRST_CONTACT_SECONDS:
            raise InputError(f"no Kubernetes API server can be reached: {error} ({self.source})") from error
        allowed = min(SERVER_ERROR_SECONDS, self.retry_seconds) if answered else self.retry_seconds
        if waited >= allowed:
            raise RunError(f"{error} (still failing after {allowed:.0f} s)") from error


def _refusal(status: int, data: bytes, seconds: float) -> Refusal:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or answer.get("kind") != "Status":
        text = " ".join(without_credentials(data.decode(errors="replace")).split())[:200] or http.HTTPStatus(status).phrase
        return Refusal(status=status, message=text, retry_after=seconds)
    details = answer.get("details")
    details = details if isinstance(details, dict) else {}
    wait = details.get("retryAfterSeconds")
    return Refusal(
        status=status,
        message=" ".join(str(answer.get("message", "")).split()),
        reason=str(answer.get("reason", "")),
        kind=str(details.get("kind", "")),
        is_status=True,
        retry_after=seconds or (float(wait) if isinstance(wait, int) and 0 <= wait < 1 << 31 else 0.0),
    )


def _kubeconfig() -> str:
    return os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")


def _keepalive() -> list[tuple[int, int, int]]:
    """Make the kernel detect within half a minute that a peer has silently gone away."""
    return [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    ]


def _transport_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (HTTPError, OSError, AttributeError, ValueError)  # the last two: from a reader whose socket close_streams() closed


def _words(error: Exception) -> str:
    text = re.sub(r"<[^>]*>:?|\w*Connection\([^)]*\):?", "", str(error))
    return " ".join(text.split()) or type(error).__name__


def _encode(query: Mapping[str, str]) -> str:
    from urllib.parse import urlencode

    return urlencode(query)
