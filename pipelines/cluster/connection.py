"""Objects of a Kubernetes cluster as plain dictionaries: get, list, create, patch, delete, watch, logs.

The only module, with pipelines/cluster/api.py below it, that talks to an API server. Every error is a single line:
missing permission (which verb on what), a kind that the cluster does not have, a refusal in the server's own words.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.cluster.api import Api, Conflict, Expired, Refusal, Refused, Unreachable
from pipelines.cluster.watch import BOOKMARK, FORBIDDEN_SECONDS, Object, Watch
from trainer.errors import InputError, RunError
from trainer.storage.retries import JITTER, Backoff

WATCH_SECONDS = 180
"""How long one watch is requested for; a connection that is silent for longer than this is considered dead."""
WATCH_MARGIN_SECONDS = 20.0
LOG_SILENCE_SECONDS = 300.0
PAGE = 50
"""Page size for lists whose objects are too large to hold all at once."""
Keep = Callable[[Object], Object]


class MissingKind(InputError):
    """The cluster does not have this kind of object, or only in another version: its CRD is not installed."""


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        api_version: group and version, such as kubeflow.org/v1.
        plural: as in addresses and roles.
        kind: as in manifests.
        source: which component provides it, for the error message if the cluster does not have it.
        pod_label: for a kind of job, the label on its pods that holds the job's name; set by its controller.
        remakes: for a kind of job, whether its controller recreates what a job owned while the job is being deleted.
    """

    api_version: str
    plural: str
    kind: str
    source: str = ""
    pod_label: str = ""
    remakes: bool = False

    @property
    def resource(self) -> str:
        """The name that `kubectl get` accepts, such as pytorchjobs.kubeflow.org."""
        group = self.api_version.rpartition("/")[0]
        return f"{self.plural}.{group}" if group else self.plural

    def path(self, namespace: str, name: str = "") -> str:
        """Address of one object, or of all; an empty namespace means all namespaces, or a cluster-scoped kind."""
        prefix = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"{prefix}{middle}/{self.plural}{f'/{name}' if name else ''}"


POD = Kind("v1", "pods", "Pod")
EVENT = Kind("v1", "events", "Event")
WORKFLOW = Kind("argoproj.io/v1alpha1", "workflows", "Workflow", "Argo Workflows")
NODE = Kind("v1", "nodes", "Node")


Objects = list[Object]


class Cluster:
    """One API server and a namespace; safe to use from several threads."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.namespace = api.namespace
        self.home = api.home
        self._allowed: set[tuple[str, str]] = set()

    @classmethod
    def connect(cls, namespace: str = "") -> "Cluster":
        """The cluster of KUBECONFIG, of the pod's service account, or of the user's kubeconfig.

        Args:
            namespace: where objects are unless a call says otherwise; empty: the namespace of the pod or of the context.

        Raises:
            InputError: no kubeconfig, or one that cannot be read. Whether the server responds is known only after the first call.
        """
        return cls(Api.connect(namespace))

    @property
    def server(self) -> str:
        """Its address."""
        return self.api.server

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None if there is none."""
        place = self._place(namespace)
        try:
            found: Object = self._call("get", kind, "GET", kind.path(place, name))
            return found
        except Refused as refused:
            if _no_such_object(refused.refusal):
                return None
            raise self._explain("get", kind, place, refused.refusal) from refused

    def list(self, kind: Kind, labels: str = "", namespace: str | None = None, *, once: bool = False) -> Objects:
        """All objects with these labels; namespace "": all namespaces, and cluster-scoped kinds; `once`: as for `patch`."""
        return self._list(kind, self._place(namespace), _selectors(labels, ""), once=once)[0]

    def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Object | None:
        """Create it in the namespace that it names; None if one with this name already exists.

        Raises:
            InputError: rejected by a schema or a webhook, or for lack of permission, in the server's words.
            RunError: rejected for now, because of a quota or a namespace that is being deleted.
        """
        place = manifest["metadata"].get("namespace") or self.namespace
        try:
            created: Object = self._call("create", kind, "POST", kind.path(place), body=manifest)
            return created
        except Refused as refused:
            if refused.refusal.reason == "AlreadyExists":
                return None
            raise self._explain("create", kind, place, refused.refusal) from refused

    def patch(
        self,
        kind: Kind,
        name: str,
        body: Mapping[str, Any],
        namespace: str | None = None,
        resource_version: str = "",
        *,
        once: bool = False,
    ) -> Object | None:
        """JSON merge patch: null removes a key, lists are replaced. None if the object is gone.

        Args:
            kind: of the object.
            name: of the object.
            body: what changes.
            namespace: None: the cluster's own.
            resource_version: version that the object must still have, since a list in `body` replaces what others may have written.
            once: do not wait for a server that does not answer.

        Raises:
            Conflict: it has another version by now.
            Unreachable: with `once`, nothing answered.
        """
        place = self._place(namespace)
        if resource_version:
            body = {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": resource_version}}
        try:
            content = "application/merge-patch+json"
            patched: Object = self._call("patch", kind, "PATCH", kind.path(place, name), body=body, content=content, once=once)
            return patched
        except Refused as refused:
            if _no_such_object(refused.refusal):
                return None
            if refused.refusal.status == 409:
                raise Conflict(f"{kind.resource} {place}/{name}: {refused.refusal.message}") from refused
            raise self._explain("patch", kind, place, refused.refusal) from refused

    def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        grace_seconds: int | None = None,
        propagation: str = "Foreground",
        resource_version: str = "",
    ) -> None:
        """Request its deletion; it is fine if it is already gone. Foreground: it remains until what it owns is gone.

        Args:
            kind: of the object.
            name: of the object.
            namespace: None: the cluster's own.
            grace_seconds: of pods, instead of their own.
            propagation: what happens to the objects it owns.
            resource_version: version that the object must still have, if the decision to delete it depends on its content.

        Raises:
            Conflict: it has another version by now.
        """
        place = self._place(namespace)
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if resource_version:
            options["preconditions"] = {"resourceVersion": resource_version}
        try:
            self._call("delete", kind, "DELETE", kind.path(place, name), body=options)
        except Refused as refused:
            if refused.refusal.status == 409 and resource_version:
                raise Conflict(f"{kind.resource} {place}/{name}: {refused.refusal.message}") from refused
            if not _no_such_object(refused.refusal) and refused.refusal.status != 409:  # 409: it is being deleted
                raise self._explain("delete", kind, place, refused.refusal) from refused

    def watch(
        self,
        kind: Kind,
        labels: str = "",
        name: str = "",
        namespace: str | None = None,
        *,
        stop: threading.Event,
        fields: str = "",
        keep: Keep | None = None,
    ) -> Iterator[tuple[str, Object]]:
        """All existing objects as ADDED, then (SYNCED, {}), then every change, until `stop` is set.

        It survives restarts of the API server, half-open connections and expired versions: then it lists again, and
        what vanished in between is reported as DELETED with its last known state, what remained as MODIFIED, and SYNCED
        is sent again. Whoever sets `stop` calls `close_streams` to end immediately a watch that is waiting.

        Args:
            kind: of the objects.
            labels: selector.
            name: of a single object to watch.
            namespace: None: the cluster's own; "": all.
            stop: ends the watch when set.
            fields: field selector, instead of a name.
            keep: selects the parts of an object that are needed (its metadata's uid and resourceVersion always are), when whole objects
                would fill the memory; they are then listed page by page.

        Raises:
            InputError: no permission, or no such kind; raised at once at the beginning, and after a minute later on.
        """
        place, selectors = self._place(namespace), _selectors(labels, f"metadata.name={name}" if name else fields)
        return Watch(
            lambda once: self._list(kind, place, selectors, once=once, keep=keep),
            lambda version: self._changes(kind, place, selectors, version, stop, keep),
        ).run(stop)

    def log(
        self,
        pod: str,
        container: str,
        since: str = "",
        follow: bool = True,
        timestamps: bool = True,
        *,
        previous: bool = False,
        tail: int = 0,
        namespace: str | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[str]:
        """Lines of a container's log; none if the container has not started or the pod is gone.

        Args:
            pod: its name.
            container: its name.
            since: RFC 3339 time to begin at; the server counts whole seconds.
            follow: stream until the container ends.
            timestamps: begin each line with the kubelet's time.
            previous: the log of the container before its last restart.
            tail: return only this many last lines; 0: all.
            namespace: None: the cluster's own.
            stop: ends it, together with `close_streams`.

        Raises:
            Unreachable: the connection broke; continue with `since`.
            InputError: no permission.
        """
        place = self._place(namespace)
        query = {"container": container, "follow": str(follow).lower(), "timestamps": str(timestamps).lower()}
        query |= {"sinceTime": since} if since else {}
        query |= {"previous": "true"} if previous else {}
        query |= {"tailLines": str(tail)} if tail else {}
        try:
            with self.api.lines(f"{POD.path(place, pod)}/log", query, LOG_SILENCE_SECONDS, stop) as lines:
                for line in lines:
                    yield line.decode(errors="replace")
        except Refused as refused:
            if refused.refusal.status not in (400, 404):  # not started yet, no earlier container, no such pod
                raise self._explain("get", Kind("v1", "pods/log", "Pod"), place, refused.refusal) from refused

    def limit_retries(self, seconds: float) -> None:
        """From now on, retry an unresponsive server for at most this many seconds, because the caller is shutting down."""
        self.api.retry_seconds = seconds

    def close_streams(self) -> None:
        """Break all open watches and logs: those whose `stop` is set end; the others reconnect."""
        self.api.close_streams()

    def _place(self, namespace: str | None) -> str:
        return self.namespace if namespace is None else namespace

    def _list(
        self, kind: Kind, place: str, selectors: Mapping[str, str], *, once: bool = False, keep: Keep | None = None
    ) -> tuple[Objects, str]:
        """All objects, and the version from which a watch can continue. Raises Expired if they changed too much between two pages."""
        head = {"apiVersion": kind.api_version, "kind": kind.kind}  # objects of a list do not repeat it
        found: Objects = []
        query = {**selectors, **({"limit": str(PAGE)} if keep else {})}
        while True:
            try:
                answer = self._call("list", kind, "GET", kind.path(place), query=query, once=once)
            except Refused as refused:
                raise self._explain("list", kind, place, refused.refusal) from refused
            listed = answer.get("items") or []
            if not isinstance(answer.get("metadata"), dict) or not isinstance(listed, list) or {type(one) for one in listed} - {dict}:
                raise Unreachable(f"{self.server}: this is not a Kubernetes API server: it returned no list of {kind.plural}")
            items = [{**head, **item} for item in listed]
            found += [keep(item) for item in items] if keep else items
            if not answer["metadata"].get("continue"):
                return found, str(answer["metadata"].get("resourceVersion", ""))
            query["continue"] = answer["metadata"]["continue"]

    def _changes(
        self, kind: Kind, place: str, selectors: Mapping[str, str], version: str, stop: threading.Event, keep: Keep | None
    ) -> Iterator[tuple[str, Object]]:
        """The changes of one watch, including bookmarks."""
        seconds = int(WATCH_SECONDS * JITTER.uniform(0.8, 1.0))
        query = {**selectors, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        try:
            with self.api.lines(kind.path(place), query, seconds + WATCH_MARGIN_SECONDS, stop) as lines:
                for line in lines:
                    try:
                        event = json.loads(line)
                        change, thing = event["type"], event["object"]
                        thing.get("metadata")
                    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                        raise Unreachable(f"{self.server}: a watch was cut short") from error
                    if change == "ERROR":
                        raise (Expired if thing.get("code") == 410 else Unreachable)(str(thing.get("message", thing)))
                    yield change, keep(thing) if keep and change != BOOKMARK else thing
        except Refused as refused:
            raise self._explain("watch", kind, place, refused.refusal) from refused

    def _call(self, verb: str, kind: Kind, method: str, path: str, *, once: bool = False, **arguments: Any) -> Any:
        """Send a request; if something that was allowed before is forbidden, assume that the server is just starting."""
        began, backoff = time.monotonic(), Backoff()
        while True:
            try:
                answer = (self.api.once if once else self.api.call)(method, path, **arguments)
                self._allowed.add((verb, kind.plural))
                return answer
            except Refused as refused:
                passing = _is_permission(refused.refusal) and (verb, kind.plural) in self._allowed
                if once or not passing or time.monotonic() - began > FORBIDDEN_SECONDS:
                    raise
                time.sleep(backoff.seconds())

    def _explain(self, verb: str, kind: Kind, place: str, refusal: Refusal) -> InputError | RunError:
        where = f"namespace {place}" if place else "all namespaces"
        if _is_permission(refusal):
            user = re.search(r'User "([^"]+)"', refusal.message)
            who = user[1] if user else self.api.source
            return InputError(f"no permission to {verb} {kind.resource} in {where} as {who} ({self.server})")
        if refusal.status == 404 and refusal.kind == "namespaces":
            return InputError(f"namespace {place} does not exist ({self.server})")
        if refusal.status == 404:
            return missing_kind(self.api, kind)
        line = f"{verb} {kind.resource} in {where}: refused by {self.server}: {refusal.message}"
        return (RunError if refusal.status in (403, 409) and not _is_denial(refusal) else InputError)(line)


def missing_kind(api: Api, kind: Kind) -> MissingKind:
    """The error that the cluster does not have this kind at all, or only in other versions."""
    group, _, version = kind.api_version.partition("/")
    try:
        served = [entry["version"] for entry in api.call("GET", f"/apis/{group}")["versions"]]
    except (Refused, InputError, RunError):
        served = []
    if served and version not in served:
        return MissingKind(f"{api.server} serves {group} in version {', '.join(served)}, but {kind.kind} is needed in {version}")
    need = f"install {kind.source or 'the component that provides it'}, or choose another backend"
    return MissingKind(f"{api.server} has no {kind.resource} ({kind.api_version}): {need}")


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {**({"labelSelector": labels} if labels else {}), **({"fieldSelector": fields} if fields else {})}


def _no_such_object(refusal: Refusal) -> bool:
    return refusal.status == 404 and refusal.is_status and refusal.reason == "NotFound" and refusal.kind not in ("", "namespaces")


def _is_permission(refusal: Refusal) -> bool:
    """Whether it is forbidden for lack of a role; quotas, webhooks and terminating namespaces also return 403."""
    return refusal.status == 403 and (not refusal.is_status or re.search(r"cannot \w+ resource", refusal.message) is not None)


def _is_denial(refusal: Refusal) -> bool:
    """Whether a webhook or a policy rejected the object."""
    return (
        "admission webhook" in refusal.message
        or "violates PodSecurity" in refusal.message
        or "ValidatingAdmissionPolicy" in refusal.message
    )
