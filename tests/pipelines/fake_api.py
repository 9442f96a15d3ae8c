"""A small Kubernetes API server on loopback: enough of the protocol to tell clients that are right from those that are lucky.

List, watch (resourceVersions, bookmarks, 410 Gone), get, create, merge patch, delete (graces, foreground), pod logs; and
what goes wrong: refusals, restarts on the same port, dropped and silent connections. No controllers but the garbage
collector: tests play the operator by `on_change`.
"""

import contextlib
import copy
import itertools
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pipelines.cluster.connection import EVENT, NODE, POD, WORKFLOW
from pipelines.jobs.shapes import job_kinds
from tests.loopback import Handler, Listener
from tests.pipelines.fake_objects import Key, Object, Status, is_selected, merge_patch
from tests.pipelines.jobs import trainer_crds

SERVED = tuple(kind.path("") for kind in (POD, EVENT, NODE, WORKFLOW, *job_kinds()))
_PATH = re.compile(
    r"(?P<base>/api/v1|/apis/[^/]+/[^/]+)(/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(/(?P<name>[^/]+))?(?P<log>/log)?"
)


class FakeApi:
    """The server and what it holds. Use as a context manager; all methods are for tests."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.namespaces = {"team", "default"}
        self.served = set(SERVED)
        self.logs: dict[tuple[str, str], list[str]] = {}  # pod, container (with `previous`: "<container>~") -> "<time> <text>"
        self.ended_logs: set[str] = set()
        self.on_change: Callable[[str, Object], None] = lambda change, thing: None
        self.refuse: Callable[[str, str, Object | None], Status | None] = lambda verb, resource, body: None
        self.requests: list[tuple[str, str]] = []  # verb, resource
        self.schemas = {"TrainJob": trainer_crds.schemas("v2.3.0")["TrainJob"]}  # of kinds whose form a client reads
        self.validation: list[str] = []  # of creations, as asked for
        self.slow_pods = False  # deleted pods stay until finish_pods()
        self.port = 0
        self._history: list[tuple[int, str, Key, Object]] = []
        self._oldest = 0
        self._versions = itertools.count(1)
        self._version = 0
        self._changed = threading.Condition(threading.RLock())
        self._connections: set[socket.socket] = set()
        self._server: Listener | None = None
        self.silent = False  # streams stay open and say nothing more

    def __enter__(self) -> "FakeApi":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the port it had before."""
        self._server = Listener(("127.0.0.1", self.port), type("OfApi", (_Handler,), {"api": self}))
        self.port = self._server.server_port
        self._server.start()

    def stop(self) -> None:
        """Refuse connections and break those that are open, as a server that is killed."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
        self.drop()

    def drop(self) -> None:
        """Break all open connections."""
        with self._changed:
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig for this server; it may be read as YAML."""
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "ana", "user": {"token": "ana"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "ana", "namespace": "team"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    def compact(self) -> None:
        """Forget the history, as etcd does: versions before now are Expired."""
        with self._changed:
            self._history.clear()
            self._oldest = self._version

    def put(self, resource: str, thing: Object) -> Object:
        """Create or replace an object as a controller would; what is not given of its metadata is filled in."""
        with self._changed:
            metadata = thing.setdefault("metadata", {})
            metadata.setdefault("namespace", "team")
            key = (resource, metadata["namespace"], metadata["name"])
            before = self.objects.get(key)
            metadata.setdefault("uid", before["metadata"]["uid"] if before else str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            self._record("MODIFIED" if before else "ADDED", key, copy.deepcopy(thing))
            return copy.deepcopy(self.objects[key])

    def change(self, resource: str, name: str, **parts: Any) -> Object:
        """Merge parts (status=…) into an object of namespace team."""
        with self._changed:
            thing = merge_patch(self.objects[(resource, "team", name)], parts)
            return self.put(resource, thing)

    def remove(self, resource: str, name: str, namespace: str = "team") -> None:
        """Take an object away at once."""
        with self._changed:
            key = (resource, namespace, name)
            if key in self.objects:
                self._record("DELETED", key, self.objects[key])
                self._collect()

    def find(self, resource: str, name: str) -> Object | None:
        """A copy of an object of namespace team."""
        with self._changed:
            return copy.deepcopy(self.objects.get((resource, "team", name)))

    def finish_pods(self) -> None:
        """The kubelet is done with the pods that are being deleted."""
        for resource, namespace, name in list(self.objects):
            if resource == "pods" and "deletionTimestamp" in self.objects[(resource, namespace, name)]["metadata"]:
                self.remove(resource, name, namespace)

    def log(self, pod: str, text: str, container: str = "pytorch", when: str = "") -> None:
        """One more line of a container's log."""
        with self._changed:
            stamp = when or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
            self.logs.setdefault((pod, container), []).append(f"{stamp} {text}")
            self._changed.notify_all()

    def end_log(self, pod: str) -> None:
        """The container ended."""
        with self._changed:
            self.ended_logs.add(pod)
            self._changed.notify_all()

    def _record(self, change: str, key: Key, thing: Object) -> None:
        self._version = next(self._versions)
        thing["metadata"]["resourceVersion"] = str(self._version)
        if change == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = thing
        self._history.append((self._version, change, key, copy.deepcopy(thing)))
        self._changed.notify_all()
        self.on_change(change, copy.deepcopy(thing))

    def _delete(self, key: Key, options: Object) -> Object:
        thing = copy.deepcopy(self.objects[key])
        wanted = options.get("preconditions", {}).get("resourceVersion")
        if wanted not in (None, thing["metadata"]["resourceVersion"]):
            raise Status(409, "Conflict", f"Precondition failed: resourceVersion {wanted} is not that of {key[2]}", key[0])
        if key[0] == "pods":
            grace = options.get("gracePeriodSeconds", thing.get("spec", {}).get("terminationGracePeriodSeconds", 30))
            if not self.slow_pods or grace == 0:
                self.remove(*key[::2], key[1])
                return thing
        if key[0] == "pods" or options.get("propagationPolicy") == "Foreground":
            thing["metadata"].setdefault("deletionTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            if key[0] == "pods":
                thing["metadata"]["deletionGracePeriodSeconds"] = min(grace, thing["metadata"].get("deletionGracePeriodSeconds", grace))
            self._record("MODIFIED", key, thing)
            for pod in self._dependents(thing["metadata"]["uid"]):
                self._delete(pod, {})
        else:
            self._record("DELETED", key, thing)
        self._collect()
        return thing

    def _dependents(self, uid: str) -> list[Key]:
        return [
            key for key, thing in self.objects.items() if uid in [owner["uid"] for owner in thing["metadata"].get("ownerReferences", [])]
        ]

    def _collect(self) -> None:
        """The garbage collector: owners in deletion go when nothing of theirs is left, and what lost its owners goes."""
        uids = {thing["metadata"]["uid"] for thing in self.objects.values()}
        for key, thing in list(self.objects.items()):
            owners = [owner["uid"] for owner in thing["metadata"].get("ownerReferences", [])]
            if key in self.objects and owners and not uids.intersection(owners) and "deletionTimestamp" not in thing["metadata"]:
                self._delete(key, {})
        for key, thing in list(self.objects.items()):
            going = key[0] != "pods" and "deletionTimestamp" in thing["metadata"]
            if going and key in self.objects and not self._dependents(thing["metadata"]["uid"]):
                self._record("DELETED", key, thing)


class _Handler(Handler):
    api: FakeApi

    def setup(self) -> None:
        super().setup()
        self.api._connections.add(self.connection)

    def finish(self) -> None:
        self.api._connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            answer = self._answer(body)
        except Status as status:
            self._send(status.code, status.body)
            return
        if isinstance(answer, dict):
            self._send(201 if self.command == "POST" else 200, json.dumps(answer).encode())
        else:
            self._stream(answer)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _answer(self, body: Object | None) -> Object | Iterator[bytes]:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        if url.path.startswith("/apis/") and url.path.count("/") in (2, 3) and (refusal := self.api.refuse("discover", url.path, None)):
            raise refusal
        if (group := url.path.removeprefix("/apis/")) and "/" not in group:
            versions = sorted({served.split("/")[3] for served in self.api.served if served.startswith(f"/apis/{group}/")}, reverse=True)
            if not versions:
                raise Status(404, "NotFound", "404 page not found", plain=True)
            return {"kind": "APIGroup", "name": group, "versions": [{"version": version} for version in versions]}
        if url.path.startswith("/openapi/v3/"):
            return self._openapi(url.path.removeprefix("/openapi/v3"))
        if url.path.startswith("/apis/") and url.path.count("/") == 3:
            plurals = [served.rpartition("/")[2] for served in self.api.served if served.startswith(f"{url.path}/")]
            return {"kind": "APIResourceList", "resources": [{"name": plural} for plural in plurals]}
        match = _PATH.fullmatch(url.path)
        if match is None or f"{match['base']}/{match['plural']}" not in self.api.served:
            raise Status(404, "NotFound", "404 page not found", plain=True)
        group = match["base"].split("/")[2] if match["base"].startswith("/apis") else ""
        resource = f"{match['plural']}.{group}" if group else match["plural"]
        namespace, name = match["namespace"] or "", match["name"] or ""
        verb = self._verb(name, query)
        self.api.requests.append((verb, resource + (match["log"] or "")))
        if refusal := self.api.refuse(verb, resource + (match["log"] or ""), body):
            raise refusal
        if match["log"]:
            return self._log(name, query)
        if verb == "watch":
            return self._watch(resource, namespace, query)
        with self.api._changed:
            return self._act(verb, resource, namespace, name, query, body)

    def _openapi(self, path: str) -> Object:
        if not any(served.startswith(f"{path}/") for served in self.api.served):
            raise Status(404, "NotFound", "404 page not found", plain=True)
        _, _, group, version = path.split("/")
        return {
            "components": {
                "schemas": {
                    kind: {**schema, "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": kind}]}
                    for kind, schema in self.api.schemas.items()
                }
            }
        }

    def _verb(self, name: str, query: dict[str, str]) -> str:
        if self.command == "GET":
            return "get" if name else "watch" if query.get("watch") in ("1", "true") else "list"
        return {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[self.command]

    def _act(self, verb: str, resource: str, namespace: str, name: str, query: dict[str, str], body: Object | None) -> Object:
        api, key = self.api, (resource, namespace, name)
        if verb == "list":
            found = [thing for place, thing in api.objects.items() if is_selected(place, thing, resource, namespace, query)]
            items = [{part: value for part, value in thing.items() if part not in ("kind", "apiVersion")} for thing in found]
            first, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(items)
            more = {"continue": str(first + limit)} if first + limit < len(items) else {}
            metadata = {"resourceVersion": str(api._version), **more}
            return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items[first : first + limit]}
        if verb == "create":
            assert body is not None
            api.validation.append(query.get("fieldValidation", ""))
            if namespace not in api.namespaces:
                raise Status(404, "NotFound", f'namespaces "{namespace}" not found', "namespaces")
            if (resource, namespace, body["metadata"]["name"]) in api.objects:
                raise Status(409, "AlreadyExists", f'{resource} "{body["metadata"]["name"]}" already exists', resource)
            return api.put(resource, body)
        if key not in api.objects:
            raise Status(404, "NotFound", f'{resource} "{name}" not found', resource.partition(".")[0])
        if verb == "get":
            return copy.deepcopy(api.objects[key])
        if verb == "delete":
            wanted = ((body or {}).get("preconditions") or {}).get("resourceVersion")
            if wanted not in (None, api.objects[key]["metadata"]["resourceVersion"]):
                raise Status(409, "Conflict", "Precondition failed: ResourceVersion in precondition and in object meta differ", resource)
            return api._delete(key, body or {})
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        assert body is not None
        wanted = body.get("metadata", {}).pop("resourceVersion", None)
        if wanted not in (None, api.objects[key]["metadata"]["resourceVersion"]):
            raise Status(409, "Conflict", "the object has been modified; please apply your changes to the latest version", resource)
        return api.put(resource, merge_patch(api.objects[key], body))

    def _watch(self, resource: str, namespace: str, query: dict[str, str]) -> Iterator[bytes]:
        api, version, end = self.api, int(query["resourceVersion"]), time.monotonic() + int(query.get("timeoutSeconds", "60"))
        if version < api._oldest:
            raise Status(410, "Expired", f"too old resource version: {version} ({api._oldest})")

        def events() -> Iterator[bytes]:
            at = version
            while (time.monotonic() < end or api.silent) and api._server is not None:
                with api._changed:
                    news = [entry for entry in api._history if entry[0] > at]
                    if not news or api.silent:
                        api._changed.wait(0.05)
                        continue
                for number, change, key, thing in news:
                    at = number
                    if is_selected(key, thing, resource, namespace, query):
                        yield json.dumps({"type": change, "object": thing}).encode() + b"\n"
                    else:
                        yield json.dumps({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(number)}}}).encode() + b"\n"

        return events()

    def _log(self, pod: str, query: dict[str, str]) -> Iterator[bytes]:
        api = self.api
        key = (pod, query["container"] + ("~" if query.get("previous") == "true" else ""))
        if ("pods", "team", pod) not in api.objects:
            raise Status(404, "NotFound", f'pods "{pod}" not found', "pods")
        if key not in api.logs:
            raise Status(400, "BadRequest", f'container "{query["container"]}" in pod "{pod}" is waiting to start: ContainerCreating')
        since, stamps = query.get("sinceTime", "")[:19], query.get("timestamps") == "true"  # the server counts whole seconds

        def lines() -> Iterator[bytes]:
            sent = 0 if "tailLines" not in query else max(0, len(api.logs[key]) - int(query["tailLines"]))
            while api._server is not None:
                with api._changed:
                    news = api.logs[key][sent:]
                    if not news:
                        if query.get("follow") != "true" or pod in api.ended_logs:
                            return
                        api._changed.wait(0.05)
                        continue
                for line in news:
                    sent += 1
                    if line[:19] >= since:
                        yield (line if stamps else line.partition(" ")[2]).encode() + b"\n"

        return lines()

    def _send(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, parts: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        with contextlib.suppress(OSError):
            for part in parts:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
            if self.api._server is not None:
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.close_connection = True
