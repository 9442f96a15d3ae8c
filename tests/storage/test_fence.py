"""Which of several attempts may commit, on every store."""

import threading
from typing import Any

import pytest

from trainer.errors import RunError
from trainer.storage import fence, layout, open_store, read_bytes, read_json, write_bytes, write_json
from trainer.storage.committed import Committed, write_committed
from trainer.storage.fence import Fence, newest_attempt, raise_attempt, read_claim


@pytest.mark.parametrize("attempt", [0, 3])
def test_of_two_processes_with_one_number_the_later_claim_wins(root: str, attempt: int):
    """A local run has the number 0, a job that restarts in place its old one."""
    first, second = Fence(root, attempt), Fence(root, attempt)
    first.claim()
    first.check()
    second.claim()

    second.check()
    with pytest.raises(RunError, match=r"attempt\.json: a later start of this stage has taken over"):
        first.check()


def test_of_many_claims_at_once_exactly_one_may_commit(root: str):
    """Whoever wrote last."""
    fences = [Fence(root, 1) for _ in range(4)]
    threads = [threading.Thread(target=each.claim) for each in fences]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(_may_commit(each) for each in fences) == 1


def _may_commit(each: Fence) -> bool:
    try:
        each.check()
    except RunError:
        return False
    return True


def test_a_run_without_a_number_takes_over_a_numbered_one_and_keeps_its_number(tmp_path: Any):
    """The next attempt of the cluster must still be the newest."""
    job, local = Fence(str(tmp_path), 3), Fence(str(tmp_path), 0)
    job.claim()
    local.claim()

    assert read_claim(str(tmp_path)).attempt == 3
    with pytest.raises(RunError, match="a later start"):
        job.check()
    Fence(str(tmp_path), 4).claim()
    with pytest.raises(RunError, match="a later start"):
        local.check()


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut", "older version"])
def test_damage_to_the_claim_of_a_living_writer_is_healed(root: str, damage: str, caplog: pytest.LogCaptureFixture):
    """Nobody takes over by that."""
    uri = layout.attempt(root)
    Fence(root, 1).claim()
    older = read_bytes(uri)
    writer = Fence(root, 2)
    writer.claim()
    data = bytearray(read_bytes(uri))
    data[data.index(b"token") + 12] ^= 1
    contents = {"flipped": bytes(data), "cut": bytes(data[:20]), "older version": older}
    if damage == "missing":
        open_store(root).delete(uri)
    else:
        write_bytes(uri, contents[damage])

    writer.check()

    assert "claimed again" in caplog.text
    assert read_claim(root).attempt == 2
    other = Fence(root, 2)
    other.claim()
    with pytest.raises(RunError):
        writer.check()


def test_a_damaged_claim_does_not_stop_a_new_one(tmp_path: Any):
    """It said `not an attempt number` for ever."""
    for content in (b"", b"[]", b'{"attempt": true}', b'{"attempt": "1"}', b"\xff"):
        write_bytes(layout.attempt(str(tmp_path)), content)
        Fence(str(tmp_path), 1).claim()


def test_a_claim_of_an_older_firstsight_is_read(tmp_path: Any):
    """It had no format_version and no token, and an older firstsight reads the new one's number."""
    write_json(layout.attempt(str(tmp_path)), {"attempt": 4})
    with pytest.raises(RunError, match="attempt 4 has taken over, attempt 3 may no longer commit"):
        Fence(str(tmp_path), 3).claim()

    Fence(str(tmp_path), 5).claim()

    assert read_json(layout.attempt(str(tmp_path)))["attempt"] == 5


def test_raising_the_number_keeps_a_claim_that_was_faster(tmp_path: Any):
    """A job may claim its folder before its launcher has written the number."""
    job = Fence(str(tmp_path), 2)
    job.claim()
    raise_attempt(str(tmp_path), 2)
    job.check()

    raise_attempt(str(tmp_path), 3)

    with pytest.raises(RunError, match="attempt 3 has taken over"):
        job.check()


def test_a_lost_answer_to_a_claim_is_no_takeover(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    """The store wrote it and said no, as a retried conditional write does."""
    written = fence._write

    def lost(*arguments: Any) -> bool:
        written(*arguments)
        return False

    monkeypatch.setattr(fence, "_write", lost)
    one = Fence(str(tmp_path), 1)
    one.claim()
    one.check()


def test_the_newest_attempt_is_known_by_the_seals_where_the_claim_is_lost(tmp_path: Any):
    """Its number must not begin again: `resume: never` looks at it."""
    seal = Committed(recipe_hash="a" * 64, attempt=5, step=1, files={}, facts={})
    write_committed(layout.checkpoint(str(tmp_path), 1), seal)
    write_bytes(f"{layout.checkpoint(str(tmp_path), 2)}/COMMITTED.json", b"damaged")

    assert newest_attempt(str(tmp_path)) == 5
    raise_attempt(str(tmp_path), 7)
    assert newest_attempt(str(tmp_path)) == 7
