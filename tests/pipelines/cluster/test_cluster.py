"""The one module that talks to API servers, against tests/pipelines/fake_api.py: what it survives and what it says."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster import api, watch
from pipelines.cluster.api import Conflict, Unreachable
from pipelines.cluster.connection import NODE, POD, Cluster
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.fake_objects import Status
from trainer.errors import InputError, RunError

JOBS = "pytorchjobs.kubeflow.org"
Event = tuple[str, str]


def job(name: str = "j", **metadata: Any) -> dict[str, Any]:
    """A PyTorchJob of namespace team."""
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": {"name": name, "namespace": "team", **metadata}, "spec": {}}


@pytest.fixture
def server(api_server: FakeApi) -> FakeApi:
    """An API server that runs."""
    return api_server


@pytest.fixture
def cluster(api_cluster: Cluster) -> Cluster:
    """A connection to it by kubeconfig."""
    return api_cluster


@pytest.fixture
def events(cluster: Cluster) -> Iterator[Callable[..., "queue.Queue[Event]"]]:
    """Starts a watch in a thread; what it says comes by a queue."""
    stop = threading.Event()
    threads = []

    def start(**options: Any) -> "queue.Queue[Event]":
        seen: queue.Queue[Event] = queue.Queue()

        def follow() -> None:
            try:
                for change, thing in cluster.watch(PYTORCHJOB, stop=stop, **options):
                    seen.put((change, thing["metadata"]["name"] if thing else ""))
            except InputError as error:
                seen.put(("error", str(error)))

        threads.append(threading.Thread(target=follow))
        threads[-1].start()
        return seen

    yield start
    stop.set()
    cluster.close_streams()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def take(seen: "queue.Queue[Event]", count: int) -> list[Event]:
    """The next events."""
    return [seen.get(timeout=20) for _ in range(count)]


def forbid(verb: str) -> Callable[..., Status | None]:
    """What an API server says where no role allows it."""

    def refuse(asked: str, what: str, body: object) -> Status | None:
        message = f'{what} is forbidden: User "ana" cannot {asked} resource "{what}" in API group "" in the namespace "team"'
        return Status(403, "Forbidden", message, what) if (asked, what) == (verb, JOBS) else None

    return refuse


def test_objects_are_created_read_changed_and_deleted(cluster: Cluster, server: FakeApi):
    """And a name that is taken, or an object that is gone, is an answer and no error."""
    created = cluster.create(PYTORCHJOB, job(labels={"a": "b"}))

    assert created is not None
    assert cluster.create(PYTORCHJOB, job()) is None
    assert set(server.validation) == {"Strict"}  # else a server drops what it does not know
    assert [thing["metadata"]["name"] for thing in cluster.list(PYTORCHJOB, labels="a=b")] == ["j"]
    assert cluster.list(PYTORCHJOB, labels="a=c", namespace="") == []
    patched = cluster.patch(PYTORCHJOB, "j", {"metadata": {"labels": {"a": None}}})
    assert patched is not None
    assert patched["metadata"]["labels"] == {}
    cluster.delete(PYTORCHJOB, "j")
    cluster.delete(PYTORCHJOB, "j")
    assert cluster.get(PYTORCHJOB, "j") is None
    assert cluster.patch(PYTORCHJOB, "j", {}) is None


def test_objects_of_a_list_say_what_they_are(cluster: Cluster, server: FakeApi):
    """An API server leaves kind and version out there."""
    server.put(JOBS, {"metadata": {"name": "j"}})

    assert cluster.list(PYTORCHJOB)[0]["kind"] == "PyTorchJob"


def test_a_patch_of_an_object_that_changed_is_a_conflict(cluster: Cluster, server: FakeApi):
    created = server.put(JOBS, job())
    server.change(JOBS, "j", status={"x": 1})

    with pytest.raises(Conflict, match="has been modified"):
        cluster.patch(PYTORCHJOB, "j", {"spec": {}}, resource_version=created["metadata"]["resourceVersion"])


@pytest.mark.parametrize(("verb", "act"), [
    ("get", lambda cluster: cluster.get(PYTORCHJOB, "j")),
    ("list", lambda cluster: cluster.list(PYTORCHJOB)),
    ("create", lambda cluster: cluster.create(PYTORCHJOB, job())),
    ("patch", lambda cluster: cluster.patch(PYTORCHJOB, "j", {})),
    ("delete", lambda cluster: cluster.delete(PYTORCHJOB, "j")),
    ("watch", lambda cluster: next(event for event in cluster.watch(PYTORCHJOB, stop=threading.Event()) if event[0] == "DELETED")),
])  # fmt: skip
def test_no_permission_names_verb_resource_namespace_and_user(cluster: Cluster, server: FakeApi, verb: str, act: Callable[[Cluster], Any]):
    server.put(JOBS, job())
    server.refuse = forbid(verb)
    if verb == "watch":
        before = watch.FORBIDDEN_SECONDS
        watch.FORBIDDEN_SECONDS = 0.1
    try:
        with pytest.raises(InputError, match=f"no permission to {verb} {JOBS} in namespace team as ana"):
            act(cluster)
    finally:
        if verb == "watch":
            watch.FORBIDDEN_SECONDS = before


def test_a_server_that_starts_may_refuse_for_a_moment_what_it_allowed(cluster: Cluster, server: FakeApi):
    """Its roles are not loaded yet."""
    server.put(JOBS, job())
    assert cluster.get(PYTORCHJOB, "j")
    refusals = iter([forbid("get")("get", JOBS, None)] * 3)
    server.refuse = lambda verb, resource, body: next(refusals, None)

    assert cluster.get(PYTORCHJOB, "j")


def test_a_kind_that_the_cluster_does_not_have(cluster: Cluster, server: FakeApi):
    """Absent altogether, or in other versions: both are said, and what to install."""
    server.served.remove("/apis/kubeflow.org/v1/pytorchjobs")
    with pytest.raises(InputError, match=r"has no pytorchjobs.kubeflow.org \(kubeflow.org/v1\): install the training operator v1"):
        cluster.create(PYTORCHJOB, job())
    server.served.add("/apis/kubeflow.org/v2beta1/pytorchjobs")
    with pytest.raises(InputError, match=r"serves kubeflow.org in version v2beta1, but PyTorchJob is needed in v1"):
        cluster.list(PYTORCHJOB)
    with pytest.raises(InputError, match=r"serves kubeflow.org in version v2beta1"):
        cluster.get(PYTORCHJOB, "j")


def test_a_namespace_that_does_not_exist(cluster: Cluster):
    with pytest.raises(InputError, match="namespace nowhere does not exist"):
        cluster.create(PYTORCHJOB, {**job(), "metadata": {"name": "j", "namespace": "nowhere"}})


@pytest.mark.parametrize(
    ("code", "message", "error"),
    [
        (403, 'pytorchjobs "j" is forbidden: exceeded quota: gpus, requested: count=1, used: count=4, limited: count=4', RunError),
        (403, 'admission webhook "policy.example" denied the request: images come from our registry', InputError),
        (400, 'admission webhook "validator.training-operator" denied the request: spec is wrong', InputError),
        (422, 'PyTorchJob.kubeflow.org "j" is invalid: spec.x: Required value', InputError),
    ],
)
def test_a_refusal_is_told_in_the_servers_own_words(cluster: Cluster, server: FakeApi, code: int, message: str, error: type[Exception]):
    """A quota may be free later; a policy will say no again."""
    server.refuse = lambda verb, resource, body: Status(code, "Forbidden", message, JOBS)

    with pytest.raises(error) as caught:
        cluster.create(PYTORCHJOB, job())
    assert message in str(caught.value)


def test_a_server_that_does_not_answer_is_named_with_the_kubeconfig(server: FakeApi, cluster: Cluster, tmp_path: Path):
    server.stop()

    with pytest.raises(
        InputError, match=rf"no Kubernetes API server can be reached: http://127.0.0.1:{server.port}: .*{tmp_path}/kubeconfig"
    ):
        cluster.list(POD)


@pytest.mark.parametrize("text", ["", "{", "clusters: []", "current-context: x\ncontexts: []\nclusters: []\nusers: []"])
def test_a_kubeconfig_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str):
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    with pytest.raises(InputError, match=f"kubeconfig {tmp_path}/config: it does not define a usable cluster"):
        Cluster.connect()


def test_a_kubeconfig_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))

    with pytest.raises(InputError, match="missing: it does not define a usable cluster"):
        Cluster.connect()


def test_requests_outlive_a_restart_of_the_server(cluster: Cluster, server: FakeApi):
    server.put(JOBS, job())
    cluster.list(PYTORCHJOB)
    server.stop()
    threading.Timer(0.3, server.start).start()

    assert cluster.get(PYTORCHJOB, "j") is not None


def test_a_server_in_trouble_is_believed_for_a_while_and_then_quoted(cluster: Cluster, server: FakeApi, monkeypatch: pytest.MonkeyPatch):
    """Such as an operator's webhook that does not respond."""
    monkeypatch.setattr(api, "SERVER_ERROR_SECONDS", 0.2)
    server.refuse = lambda verb, resource, body: Status(500, "InternalError", "failed calling webhook: connection refused")

    with pytest.raises(RunError, match=r"answers 500: failed calling webhook: connection refused \(still failing after"):
        cluster.create(PYTORCHJOB, job())


def test_a_watch_begins_with_what_there_is(events: Callable[..., "queue.Queue[Event]"], server: FakeApi):
    server.put(JOBS, job("a"))
    server.put(JOBS, job("b", labels={"x": "y"}))
    seen = events(labels="x=y")

    assert take(seen, 2) == [("ADDED", "b"), ("SYNCED", "")]
    server.put(JOBS, job("c"))
    server.put(JOBS, job("d", labels={"x": "y"}))
    server.remove(JOBS, "b")
    assert take(seen, 2) == [("ADDED", "d"), ("DELETED", "b")]


def test_a_watch_goes_on_where_a_dropped_connection_ended(events: Callable[..., "queue.Queue[Event]"], server: FakeApi):
    """Nothing is listed again, and nothing that happened in between is lost."""
    seen = events()
    assert take(seen, 1) == [("SYNCED", "")]
    server.stop()
    server.put(JOBS, job("a"))
    server.start()

    assert take(seen, 1) == [("ADDED", "a")]
    assert server.requests.count(("list", JOBS)) == 1


def test_a_watch_lists_again_when_its_version_is_gone(events: Callable[..., "queue.Queue[Event]"], server: FakeApi):
    """What vanished meanwhile is said to be deleted, what stayed is said again."""
    server.put(JOBS, job("a"))
    server.put(JOBS, job("b"))
    seen = events()
    assert take(seen, 3)[-1] == ("SYNCED", "")
    server.stop()
    server.remove(JOBS, "a")
    server.put(JOBS, job("c"))
    server.compact()
    server.start()

    assert take(seen, 4) == [("DELETED", "a"), ("MODIFIED", "b"), ("ADDED", "c"), ("SYNCED", "")]


def test_a_connection_that_went_silent_is_given_up(
    events: Callable[..., "queue.Queue[Event]"], server: FakeApi, monkeypatch: pytest.MonkeyPatch
):
    """A load balancer that forgot the connection keeps it open and carries nothing."""
    monkeypatch.setattr("pipelines.cluster.connection.WATCH_SECONDS", 1.3)
    monkeypatch.setattr("pipelines.cluster.connection.WATCH_MARGIN_SECONDS", 0.3)
    seen = events()
    assert take(seen, 1) == [("SYNCED", "")]
    server.silent = True
    server.put(JOBS, job("a"))
    while server.requests.count(("watch", JOBS)) < 2:
        time.sleep(0.02)
    server.silent = False

    assert take(seen, 1) == [("ADDED", "a")]


def test_a_watch_survives_refusals_of_a_server_that_starts(events: Callable[..., "queue.Queue[Event]"], server: FakeApi):
    seen = events()
    assert take(seen, 1) == [("SYNCED", "")]
    refusals = iter([forbid("watch")("watch", JOBS, None)] * 5)
    server.refuse = lambda verb, resource, body: next(refusals, None)
    server.drop()
    server.put(JOBS, job("a"))

    assert take(seen, 1) == [("ADDED", "a")]


def test_a_watch_of_a_missing_kind_says_so_at_once(events: Callable[..., "queue.Queue[Event]"], server: FakeApi):
    server.served.remove("/apis/kubeflow.org/v1/pytorchjobs")

    ((kind, line),) = take(events(), 1)
    assert kind == "error"
    assert "install the training operator" in line


def test_a_log_is_followed_to_its_end(cluster: Cluster, server: FakeApi):
    server.put("pods", {"metadata": {"name": "p"}})
    assert list(cluster.log("p", "pytorch")) == []  # not started
    assert list(cluster.log("q", "pytorch")) == []  # no such pod
    server.log("p", "first", when="2026-01-01T00:00:00.1Z")
    server.log("p", "second", when="2026-01-01T00:00:01.1Z")
    server.end_log("p")

    assert list(cluster.log("p", "pytorch")) == ["2026-01-01T00:00:00.1Z first", "2026-01-01T00:00:01.1Z second"]
    assert list(cluster.log("p", "pytorch", since="2026-01-01T00:00:01Z", timestamps=False)) == ["second"]
    assert list(cluster.log("p", "pytorch", follow=False, tail=1, timestamps=False)) == ["second"]


def test_a_log_that_breaks_off_is_told_from_one_that_ended(cluster: Cluster, server: FakeApi):
    server.put("pods", {"metadata": {"name": "p"}})
    server.log("p", "first")
    lines = cluster.log("p", "pytorch", timestamps=False)
    assert next(lines) == "first"
    server.stop()

    with pytest.raises(Unreachable):
        next(lines)


def test_kinds_without_namespace_are_listed_from_the_root(cluster: Cluster, server: FakeApi):
    server.put("nodes", {"metadata": {"name": "n", "namespace": ""}})

    assert [node["metadata"]["name"] for node in cluster.list(NODE, namespace="")] == ["n"]
