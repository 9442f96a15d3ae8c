"""Bounds on what others wrote: each is documented, and the budget that is shared lets everybody through in the end."""

import errno
import gzip
import inspect
import json
import multiprocessing
import re
import threading
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trainer import bounds
from trainer.bounds import Budget, depth, gunzip, naming_full_disk, parse_json
from trainer.errors import InputError, RunError
from trainer.staging import images

DATA = Path("docs/DATA.md").read_text(encoding="utf-8")


def test_every_bound_is_documented_with_its_reason() -> None:
    """docs/DATA.md names each constant, and each has a sentence in the code."""
    names = [name for name in vars(bounds) if name.startswith("MAX_")]
    table = set(re.findall(r"`(MAX_\w+)` \|", DATA))
    assert {*names, "MAX_SCAN_PIXELS"} == table
    source = inspect.getsource(bounds)
    assert all(re.search(rf'^{name} = .*\n"""', source, re.MULTILINE) for name in names)
    assert images.MAX_SCAN_PIXELS


class Gauge:
    """How much was held at one time, and what was held alone."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.now, self.most, self.alone = budget, 0, 0, True
        self._lock = threading.Lock()

    def hold(self, amount: int) -> None:
        with self.budget.taken(amount):
            with self._lock:
                self.now += amount
                self.most = max(self.most, self.now)
            time.sleep(0.002)
            with self._lock:
                self.alone &= amount <= self.budget.limit or self.now == amount
                self.now -= amount


def test_a_budget_is_never_exceeded_but_by_one_alone() -> None:
    """Small amounts share it; one that is larger than the whole waits until it is free, and small ones then wait for it."""
    gauge = Gauge(Budget(10))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(gauge.hold, [3, 2, 4, 1, 25, 3, 9, 5, 5, 30, 1] * 5))
    assert gauge.now == 0
    assert gauge.alone
    assert 10 <= gauge.most <= 30


def test_a_large_amount_does_not_starve() -> None:
    """Those who come after it wait, however small they are."""
    budget, done = Budget(10), []

    def hold(amount: int) -> None:
        with budget.taken(amount):
            done.append(amount)

    threads = [threading.Thread(target=hold, args=(amount,)) for amount in (10, 1)]
    with budget.taken(1):
        threads[0].start()
        while not budget._turn.locked():
            time.sleep(0.001)
        threads[1].start()  # there is room for it, but the large one was first
        threads[1].join(0.1)
        assert done == []
    for thread in threads:
        thread.join()
    assert done == [10, 1]


def test_a_budget_is_given_back_after_an_error() -> None:
    budget = Budget(10)
    with pytest.raises(ValueError, match="x"), budget.taken(10):
        raise ValueError("x")
    with budget.taken(10):
        assert budget._used.value == 10


_SHARED: list[Any] = []


def _begin(budget: Budget, counter: Any) -> None:
    _SHARED[:] = [budget, counter]


def _hold(_: int) -> int:
    budget, counter = _SHARED
    with budget.taken(6):
        with counter.get_lock():
            counter.value += 1
            seen = int(counter.value)
        time.sleep(0.02)
        with counter.get_lock():
            counter.value -= 1
    return seen


def test_processes_share_a_budget() -> None:
    """Of two processes only one holds more than half of it."""
    context = multiprocessing.get_context("spawn")
    arguments = (Budget(10, context), context.Value("i", 0))
    with ProcessPoolExecutor(2, context, initializer=_begin, initargs=arguments) as pool:
        assert set(pool.map(_hold, range(12))) == {1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[" * 100_000, "x: nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "x: nested deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "x: nested deeper than 64 levels"),
        ("9" * 5000, "x: not JSON: Exceeds the limit"),
        (b"\xff\xff", "x: not JSON: "),
        ('"' + "a" * 200 + '"', "x: 202 bytes, but at most 200 are read"),
    ],
)
def test_json_beyond_a_bound_is_refused_in_one_line(text: str | bytes, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        parse_json(text, "x", most=200 if '"aa' in str(text[:3]) else None)


def test_json_within_the_bounds_is_read() -> None:
    """64 levels, and brackets inside of texts."""
    assert depth(parse_json("[" * 64 + "]" * 64, "x")) == 64
    assert parse_json(json.dumps("[" * 1000), "x") == "[" * 1000


def test_gzip_is_unpacked_within_a_bound() -> None:
    """All its parts; a bomb, a cut and a flipped byte are refused, naming the source."""
    data = gzip.compress(b"a" * 1000) + gzip.compress(b"b")
    assert gunzip(data, "x", 1001) == b"a" * 1000 + b"b"
    assert gunzip(data + bytes(512), "x", 1001) == b"a" * 1000 + b"b"
    with pytest.raises(InputError, match=r"x: more than 1,000 bytes when decompressed"):
        gunzip(data, "x", 1000)
    with pytest.raises(InputError, match="x: truncated gzip file"):
        gunzip(data[:-5], "x", 2000)
    with pytest.raises(InputError, match="x: incomplete or damaged gzip file"):
        gunzip(zlib.compress(b"a"), "x", 2000)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_names_file_and_folder(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(RunError, match=rf"shard-0\.tar: cannot be written: .* in {tmp_path}: .* set TMPDIR"),
        naming_full_disk("shard-0.tar"),
    ):
        raise OSError(number, "full")
    with pytest.raises(RunError, match=r"list\.csv: .* in /scratch: free some space there"), naming_full_disk("list.csv", "/scratch"):
        raise OSError(number, "full")
    with pytest.raises(OSError, match="other"), naming_full_disk("x"):
        raise OSError(errno.EIO, "other")
