"""Texts lose the credentials of URLs in them, and nothing else."""

import json
import sys
import threading
from collections import UserDict
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from trainer import redaction
from trainer.errors import Corrupt, InputError, RunError, exit_code, hide_credentials_in_tracebacks, words_of
from trainer.redaction import holds_credentials, without_credentials
from trainer.staging.remote.http import FetchError
from trainer.staging.rows import Reject

SECRET = "c4n4ry-0123456789"
CARRIERS = [
    f"https://bucket.s3.amazonaws.com/x.png?X-Amz-Algorithm=A&X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"https://h/x?x-amz-security-token={SECRET}&a=b",
    f"https://storage.googleapis.com/x?X-Goog-Signature={SECRET}",
    f"https://account.blob.core.windows.net/x?sv=2020&sig={SECRET}&se=2030",
    f"https://h/x?token={SECRET}",
    f"https://h/x?a=1&access_token={SECRET}#part",
    f"https://h/x?Expires=1&Signature={SECRET}&Key-Pair-Id=K",
    f"https://h/x?a=1;api_key={SECRET}",
    f"https://user:{SECRET}@h/x",
    f"https://{SECRET}@h/x",
    f"ftp://user:{SECRET}@h:21/x",
    f"s3://{SECRET}@bucket/x",
]
MORE = [
    json.dumps({"uri": f"https://h/x?a=b&token={SECRET}"}).replace("&", "\\u0026"),
    f"https://h/go?to=https%3A%2F%2Fi%2Fx%3Fsig%3D{SECRET}",
    f"<a href='https://h/x?a=1&amp;sig={SECRET}'>",
    f"two: https://h/x?sig={SECRET} and https://u:{SECRET}@h/x, once more ({SECRET[:0]}https://h/?PASSWORD={SECRET})",
    f"HTTPS://h/x?X-AMZ-SIGNATURE={SECRET}",
]
INNOCENT = [
    "", "no URL: a=b", "https://h/x.png?size=large&page=2", "s3://bucket/folder/x.tar", "https://h/a@b/x", "me@example.org",
    "mailto:me@example.org", "jobs.nodes must be >= 1, got 0", "https://h/x?keyword=a&tokens=b&signed=c&design=d",
]  # fmt: skip


@pytest.mark.parametrize("text", CARRIERS + MORE)
def test_credentials_are_taken_out(text: str) -> None:
    """In each way that stores and web sites sign a URL, and in each way that a text quotes one."""
    shown = without_credentials(text)
    assert SECRET not in shown
    assert without_credentials(shown) == shown
    assert "/x" in shown or "%2Fx" in shown


@pytest.mark.parametrize("uri", CARRIERS)
def test_a_uri_with_credentials_is_known(uri: str) -> None:
    """For whatever must not be given one."""
    assert holds_credentials(uri)


@pytest.mark.parametrize("text", INNOCENT)
def test_nothing_else_is_changed(text: str) -> None:
    """Where there is no credential."""
    assert without_credentials(text) == text
    assert not holds_credentials(text)


@pytest.mark.parametrize("kind", [InputError, RunError, Corrupt])
@pytest.mark.parametrize("uri", CARRIERS[:2] + CARRIERS[-4:])
def test_no_error_and_no_reject_quotes_them(kind: type[Exception], uri: str) -> None:
    """However it comes to be written."""
    error = kind(f"{uri}: refused")
    assert SECRET not in f"{error} {error!r} {error.args}"
    assert SECRET not in words_of(OSError(f"{uri}: gone"))
    assert SECRET not in f"{FetchError('bad URL', uri)!r}"
    assert SECRET not in repr(Reject("row 1", "bad URL", uri))


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "KFP_TOKEN", "KFP_COOKIE", "WANDB_API_KEY", "MY_PASSWORD"])
def test_what_a_server_repeats_of_our_credentials_is_taken_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that quotes the header it was sent."""
    monkeypatch.setenv(name, SECRET)
    assert SECRET not in str(RunError(f"the store answers 403: 'Authorization: Bearer {SECRET}' is not known"))
    monkeypatch.setenv(name, "short")
    assert str(RunError("a short line")) == "a short line"


def test_what_was_read_from_a_file_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_given", set())
    redaction.conceal(SECRET, "")
    assert str(InputError(f"{SECRET} is wrong")) == "*** is wrong"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/run/credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "firsttester")
    assert str(InputError("/run/credentials: firsttester is not known")) == "/run/credentials: firsttester is not known"


def test_no_traceback_quotes_one(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With -v, of an error's cause too, and of an error that nobody foresaw, in a thread too."""

    def fail() -> int:
        try:
            raise OSError(f"https://h/x?sig={SECRET}")
        except OSError as error:
            raise InputError("refused") from error

    assert exit_code("x", fail, verbose=True) == 2
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    hide_credentials_in_tracebacks()
    error = RuntimeError(f"of https://u:{SECRET}@h/x")
    sys.excepthook(RuntimeError, error, None)
    threading.excepthook(threading.ExceptHookArgs([RuntimeError, error, None, None]))
    said = capfd.readouterr().err
    assert said.count("RuntimeError: of https://***@h/x") == 2
    assert "OSError: https://h/x?sig=***" in said
    assert SECRET not in said


def test_a_variable_that_another_thread_takes_away_meanwhile_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is told in whatever thread it happens."""

    class Vanishing(UserDict[str, str]):
        def __iter__(self) -> Iterator[str]:
            return iter(["AWS_SECRET_ACCESS_KEY", "AN_API_KEY"])

    monkeypatch.setattr(redaction, "os", SimpleNamespace(environ=Vanishing({"AWS_SECRET_ACCESS_KEY": SECRET})))

    assert without_credentials(f"x {SECRET}") == "x ***"
