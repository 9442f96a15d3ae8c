"""Runs targets: with coverage where atheris is there, else by mutations that lead to new answers; findings are kept as small files."""

import contextlib
import hashlib
import io
import json
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS, Target
from tests.mutating import mutations
from tests.staging.hostile.test_fuzz_plans import changed

FINDINGS = Path(__file__).parents[1] / "data" / "fuzz"
HUNG_SECONDS = 60
_MOST_BYTES = 1 << 16


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A variant: of JSON as often one value somewhere in it as bytes."""
    if data[:1] in (b"{", b"[") and draw.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError, TypeError):
            value: Any = json.loads(data)
            for _ in range(draw.choice((1, 1, 2, 4))):
                value = changed(value, draw)
            return json.dumps(value).encode()
    return next(mutations(data, draw.randrange(1 << 30), 1))[:_MOST_BYTES]


class HungError(Exception):
    """A reader that takes longer than HUNG_SECONDS."""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What libraries say of damage on the way is nobody's business; whoever hangs is told."""

    def hang(number: int, frame: object) -> None:
        raise HungError(f"longer than {HUNG_SECONDS} s")

    before, level = signal.signal(signal.SIGALRM, hang), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        signal.signal(signal.SIGALRM, before)


def one(target: Target, data: bytes) -> str:
    """The outcome of one input, in a folder of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        signal.alarm(HUNG_SECONDS)
        try:
            return target.outcome(data, Path(folder))
        finally:
            signal.alarm(0)


def warm_up(target: Target) -> None:
    """Read what is good once, without a limit: imports take a busy machine longer than any input may."""
    for data in target.seeds():
        with tempfile.TemporaryDirectory() as folder:
            target.outcome(data, Path(folder))


def hunt(target: Target, seconds: float, seed: int, most: int = 1 << 60) -> tuple[int, dict[str, bytes]]:
    """How many inputs were tried, and the findings by what they raised.

    Inputs whose answer was not seen before become ones to begin with.
    """
    draw = random.Random(f"{target.name} {seed}")
    corpus, seen, findings, tried = target.seeds(), set[str](), dict[str, bytes](), 0
    with quietly():
        warm_up(target)
        end = time.monotonic() + seconds
        while not tried or (time.monotonic() < end and tried < most):
            data = mutate(draw.choice(corpus), draw)
            tried += 1
            try:
                answer = one(target, data)
            except (Exception, HungError) as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                findings.setdefault(f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:200]}", data)
                continue
            if answer not in seen and len(seen) < 2000:
                seen.add(answer)
                corpus.append(data)
    return tried, findings


def keep(target: str, data: bytes) -> Path:
    """Write a finding where tests/fuzz/test_findings.py reads it for ever."""
    path = FINDINGS / target.replace(" ", "-") / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def hunt_with_coverage(name: str, seconds: int, seed: int, corpus: Path) -> None:
    """Let libFuzzer lead through the code of trainer and pipelines; ends the process, with 77 where an input is a finding."""
    import atheris

    target = TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)

    def custom(data: bytes, most: int, number: int) -> bytes:
        draw = random.Random(number)
        made = mutate(bytes(data), draw) if draw.random() < 0.7 else atheris.Mutate(bytes(data), most)
        return bytes(made[:most])

    def read(data: bytes) -> None:
        target.outcome(data, place)

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    warm_up(target)
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    flags = [
        f"-max_total_time={seconds}", f"-seed={seed or 1}", f"-timeout={HUNG_SECONDS}", "-rss_limit_mb=4096", f"-max_len={_MOST_BYTES}",
        f"-artifact_prefix={corpus.parent.parent}/finding-{name.replace(' ', '-')}-", "-print_final_stats=1", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read, custom_mutator=custom)
    atheris.Fuzz()
