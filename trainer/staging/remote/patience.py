"""Connections that give up at a deadline, however slowly a server drips: a read time-out alone begins anew with every byte."""

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

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs headers that it cannot parse with a traceback


def patient_pool(seconds: float, *, whole: bool = True, **options: Any) -> urllib3.PoolManager:
    """A pool whose answers take at most so long, from the end of the request on.

    Args:
        seconds: for an answer.
        whole: its body too; else for its headers alone.
        options: of PoolManager.
    """

    def answer(sock: socket.socket, *arguments: Any, **names: Any) -> http.client.HTTPResponse:
        return _PatientAnswer(sock, seconds, whole, *arguments, **names)

    class Plain(HTTPConnection):
        response_class = staticmethod(answer)  # type: ignore[assignment]

    class Secure(HTTPSConnection):
        response_class = staticmethod(answer)  # type: ignore[assignment]

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    manager = urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


class _PatientAnswer(http.client.HTTPResponse):
    """An answer that is read through `_Deadline`."""

    def __init__(self, sock: socket.socket, seconds: float, whole: bool, *arguments: Any, **names: Any) -> None:
        super().__init__(sock, *arguments, **names)
        self._deadline, self._whole = _Deadline(self.fp.detach(), sock, seconds), whole
        self.fp = io.BufferedReader(self._deadline)

    def begin(self) -> None:
        super().begin()
        if not self._whole:
            self._deadline.lift()


class _Deadline(io.RawIOBase):
    """A socket's file that raises TimeoutError after so many seconds, or where nothing comes for its read time-out."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, seconds: float) -> None:
        self._raw, self._sock, self._seconds = raw, sock, seconds
        self._end = time.monotonic() + seconds
        self._silence = sock.gettimeout() or math.inf

    def lift(self) -> None:
        """The silence alone counts from now on."""
        self._end = math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not answered in full within {self._seconds:g} s")
        wait = min(left, self._silence)
        self._sock.settimeout(wait if wait < math.inf else None)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
