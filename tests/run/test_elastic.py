"""The elastic agent, over ranks that are a line of Python each."""

import inspect
import os
import signal
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from tests.run.toy import toy_config
from trainer.errors import InputError, RunError, Stopped
from trainer.run.elastic import run_agent
from trainer.run.failure import write_failure
from trainer.storage.writers import has_mark

COUNT = "import os, pathlib, sys, time; started = pathlib.Path(sys.argv[1]) / f'{os.environ[\"RANK\"]}-{time.time_ns()}'; started.touch(); "


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each look the rendezvous reads the source of the whole stack to log its caller, and pytest's is deep: without the source."""
    monkeypatch.setattr(dynamic_rendezvous, "inspect", types.SimpleNamespace(stack=lambda: inspect.stack(0)))


def rank(folder: Path, code: str) -> list[str]:
    """The interpreter's arguments for a rank that says it started, then does `code`."""
    return ["-c", COUNT + code, str(folder)]


def starts(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*-*")))


def test_a_rank_that_finds_its_input_wrong_is_never_started_again(tmp_path: Path) -> None:
    """Exit 2 ends the run at once, whatever restarts are left."""
    config = toy_config(tmp_path, processes_per_node=2, max_restarts=3)
    with pytest.raises(InputError):
        run_agent(config, rank(tmp_path, "sys.exit(2 if os.environ['RANK'] == '1' else time.sleep(60))"))
    assert starts(tmp_path) <= 2


def test_a_rank_that_failed_is_started_again_with_its_peers(tmp_path: Path) -> None:
    """In place, up to max_restarts."""
    config = toy_config(tmp_path, processes_per_node=2, max_restarts=1)
    both = "[time.sleep(0.01) for _ in iter(lambda: len(list(started.parent.glob('[0-9]*-*'))) < 2, False)]; "
    run_agent(config, rank(tmp_path, both + "sys.exit(int(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'))"))
    assert starts(tmp_path) == 4


def test_ranks_that_are_started_again_meet_at_a_store_of_their_own(tmp_path: Path) -> None:
    """In that of the round before they would find the addresses of those that died, and wait for them."""
    config = toy_config(tmp_path, processes_per_node=2, max_restarts=1)
    code = "port = os.environ['MASTER_PORT']; (pathlib.Path(sys.argv[1]) / f'port-{port}').touch(); "
    run_agent(config, rank(tmp_path, code + "sys.exit(int(os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'))"))
    assert len(list(tmp_path.glob("port-*"))) == 2


def test_when_restarts_are_used_up_the_line_says_how_a_rank_ended(tmp_path: Path) -> None:
    """A rank that was killed left no line of its own."""
    config = toy_config(tmp_path, processes_per_node=1, max_restarts=1)
    with pytest.raises(RunError, match="rank 0 of this machine was killed by signal 9"):
        run_agent(config, rank(tmp_path, "os.kill(os.getpid(), 9)"))
    assert starts(tmp_path) == 2


def test_an_agent_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks' logs lie in a folder that goes with it; one that was killed has its mark on it, by which the next sweeps it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    config = toy_config(tmp_path, processes_per_node=1)
    run_agent(config, rank(tmp_path, "(started.parent / 'seen').write_text(str(list(started.parent.glob('*ranks*'))))"))
    assert has_mark((tmp_path / "seen").read_text())
    assert not list(tmp_path.glob("*ranks*"))
    assert not list(tmp_path.glob("torchelastic_*"))


def test_the_line_of_the_rank_reaches_the_caller(tmp_path: Path) -> None:
    """Through failure.json, which the rank wrote."""
    config = toy_config(tmp_path, processes_per_node=1)
    write_failure(config, InputError("model.embed_dim must be >= 1, got 0"))
    future = f"import json; p = pathlib.Path({config.output!r}) / 'failure.json'; v = json.loads(p.read_text()); "
    future += "v = {'time': time.time(), 'stage': v['stage'], 'exit_code': v['exit_code'], 'line': v['line']}; "
    with pytest.raises(InputError, match="embed_dim must be >= 1, got 0"):
        run_agent(config, rank(tmp_path, future + "p.write_text(json.dumps(v)); sys.exit(2)"))


def test_sigterm_of_the_agent_reaches_the_ranks_and_ends_in_143(tmp_path: Path) -> None:
    """Each rank gets the time to save."""
    config = toy_config(tmp_path, processes_per_node=2)
    code = (
        "import signal; done = started.with_name('saved-' + os.environ['RANK']); "
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), done.touch(), os._exit(143))); "
        "started.with_name('ready-' + os.environ['RANK']).touch(); time.sleep(60)"
    )

    def terminate() -> None:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    threading.Thread(target=terminate, daemon=True).start()
    try:
        with pytest.raises(Stopped) as stopped:
            run_agent(config, rank(tmp_path, code))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stopped.value.exit_code == 143
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_many_machines_need_to_know_where_to_meet(tmp_path: Path) -> None:
    """Outside a PyTorchJob there is no rendezvous."""
    with pytest.raises(InputError, match=r"placement\.nodes must be 1 unless PET_RDZV_ENDPOINT sets"):
        run_agent(toy_config(tmp_path, nodes=2), [])
