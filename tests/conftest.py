"""Fixtures for all tests."""

import atexit
import contextlib
import gc
import os
import secrets
import socketserver
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fault_proxy import FaultProxy, fault_proxy
from tests.servers import S3Server, minio, seaweedfs
from trainer.storage import retries
from trainer.storage.s3_client import Client
from trainer.storage.scratch import temporary_folder

os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads wait in a loop: two of each of several workers take ten times the CPU
for name in ("ARGS", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"):
    os.environ.pop(name, None)  # of the `make test` that runs these tests; a make that a test starts would take them for its own
# Without compiled bytecode every worker, and every process that a test starts, would compile firstsight and rewrite the tests again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
retries.FIRST_SECONDS = 0.01  # what tests let fail is there again at once; processes that they start keep the product's pauses
os.fsync = lambda fd, /: None  # no test cuts the power, and every small file would wait for the disk
socketserver.BaseServer.serve_forever.__defaults__ = (0.01,)  # `shutdown` waits for as long, else half a second
_session = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Put the session's temporary files in one folder that is removed with it: the many killed processes do not clean up.

    pytest's own folders, which hold what failing tests left, stay where they are.
    """
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        config.stash[_session] = contextlib.ExitStack()
        folder = config.stash[_session].enter_context(temporary_folder("tests"))
        folder.chmod(0o1777)  # some tests run as another user
        os.environ["TMPDIR"] = str(folder)
        tempfile.tempdir = None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """See tests/scheduling.py."""
    from tests.scheduling import scheduler

    return scheduler(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage collection while everything is imported, nor of it later: it took half of the time until the first test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that folder."""
    # Libraries in C++ report every object that Python has not released at exit as a leak; until then pytest collects garbage twice more.
    atexit.register(gc.unfreeze)
    if _session in config.stash:
        with contextlib.suppress(OSError):  # what still writes there is not this session's to wait for
            config.stash[_session].close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole session, started by the first test that asks for it."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_bucket(s3_server: S3Server) -> str:
    """The URI of a bucket for the whole session: the first write into a new one takes SeaweedFS seconds."""
    return s3_server.make_bucket()


@pytest.fixture
def s3_root(s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh folder in the bucket, with the environment set so that trainer.storage reaches it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{s3_bucket}/{secrets.token_hex(4)}"


@pytest.fixture
def proxy(s3_root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A fault-injecting proxy on the way to the store."""
    with fault_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def unconditional(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of a store whose server answers 200 whatever the condition: it never sees one."""
    put = Client.put

    def without(self: Client, bucket: str, key: str, data: bytes, headers: Mapping[str, str] | None = None, md5: str = "") -> Any:
        return put(self, bucket, key, data, {name: value for name, value in (headers or {}).items() if not name.startswith("If-")}, md5)

    monkeypatch.setattr(Client, "put", without)
    return s3_root


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One MinIO behind TLS for the whole session; for slow tests."""
    with minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def minio_root(minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a fresh bucket on MinIO, with the environment set so that trainer.storage reaches it."""
    for name, value in minio_server.environment.items():
        monkeypatch.setenv(name, value)
    return minio_server.make_bucket()


@pytest.fixture(params=["file", "s3", pytest.param("minio", marks=pytest.mark.slow)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh store root as files and as objects of each server: for what must hold on all."""
    return str(tmp_path / "root") if request.param == "file" else str(request.getfixturevalue(f"{request.param}_root"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests a longer time limit: they may first have to build a server or an environment."""
    for item in items:
        if (item.get_closest_marker("slow") or item.get_closest_marker("campaign")) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))
