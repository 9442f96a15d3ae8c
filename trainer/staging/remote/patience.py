"""Connections to the web: only to allowed addresses, and never beyond a deadline.

A read time-out alone restarts with every byte, so a slowly dripping server could hold a connection for ever. Proxies from the
environment are not used: through a proxy, the address that is reached is unknown.
"""

import http.client
import io
import logging
import math
import socket
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from trainer.staging.remote.addresses import Reachable, check_peer, permitted

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs headers that it cannot parse with a traceback


def patient_pool(seconds: float, *, whole: bool = True, **options: Any) -> urllib3.PoolManager:
    """A pool with a deadline for each response, counted from the end of the request; PrivateAddressError for private addresses.

    Args:
        seconds: the deadline.
        whole: whether the deadline covers the body too, or only the headers.
        options: passed to PoolManager.
    """

    def answer(sock: socket.socket, *arguments: Any, **names: Any) -> http.client.HTTPResponse:
        return _PatientAnswer(sock, seconds, whole, *arguments, **names)

    allowed = Reachable.from_environment()

    class Plain(_Guarded, HTTPConnection):
        response_class = staticmethod(answer)  # type: ignore[assignment]
        reachable = allowed

    class Secure(_Guarded, HTTPSConnection):
        response_class = staticmethod(answer)  # type: ignore[assignment]
        reachable = allowed

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


class _Guarded(HTTPConnection):
    """A connection to an allowed address, whatever the URL's host name."""

    reachable: Reachable

    def _new_conn(self) -> socket.socket:
        host = self._dns_host
        try:
            addresses = permitted(host.strip("[]"), self.port, self.reachable)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError as error:  # a label is empty or too long
            raise NewConnectionError(self, f"{host!r} is not a host name") from error
        failure: Exception = NewConnectionError(self, f"{host!r} has no address")
        for address in addresses:
            self._dns_host = address  # what urllib3 resolves: an address resolves to itself alone
            try:
                connection = super()._new_conn()
            except (ConnectTimeoutError, NewConnectionError) as error:
                failure = error
            else:
                check_peer(connection, self.reachable)
                return connection
            finally:
                self._dns_host = host
        raise failure


class _PatientAnswer(http.client.HTTPResponse):
    """A response that is read through `_Deadline`."""

    def __init__(self, sock: socket.socket, seconds: float, whole: bool, *arguments: Any, **names: Any) -> None:
        super().__init__(sock, *arguments, **names)
        self._deadline, self._whole = _Deadline(self.fp.detach(), sock, seconds), whole
        self.fp = io.BufferedReader(self._deadline)

    def begin(self) -> None:
        super().begin()
        if not self._whole:
            self._deadline.lift()


class _Deadline(io.RawIOBase):
    """A socket's file that raises TimeoutError after its deadline, or if nothing arrives within its read time-out."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self._raw, self._sock, self._seconds = raw, sock, seconds
        self._end = time.monotonic() + seconds
        self._silence = sock.gettimeout() or math.inf

    def lift(self) -> None:
        """From now on, only the read time-out applies."""
        self._end = math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no complete response within {self._seconds:g} s")
        wait = min(left, self._silence)
        self._sock.settimeout(wait if wait < math.inf else None)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
