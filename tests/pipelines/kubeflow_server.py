"""A stand-in for a Kubeflow Pipelines server: the part of its API that firstsight uses, answering as 2.17.0 was recorded to answer.

Refusals are the recorded ones, word for word; runs are brought on by the simulator of Argo (tests/pipelines/kubeflow/argo.py); the
log route answers 200 whatever it means, and gives no log of a step that runs. Recordings: tests/data/kfp-recordings/INDEX.md.
"""

import contextlib
import json
import re
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.loopback import Handler, serving
from tests.pipelines.kubeflow import recordings
from tests.pipelines.kubeflow.argo import SUCCEEDED, Pod
from tests.pipelines.kubeflow.refusals import Denied, Faults, Refused, take
from tests.pipelines.kubeflow.runs import Run, now

API = "/apis/v2beta1"
TYPES = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "LIST": list, "STRUCT": dict, "BOOLEAN": bool}
POD = "metadata-1-3-system-container-impl"
NAME_BYTES = 128
"""Of a run's name that the database takes; the recorded one that was refused had 300."""


class KubeflowServer:
    """The state behind the server, and what a test can set."""

    def __init__(self) -> None:
        self.url = ""
        self.multi_user = False
        self.namespaces = {"team-a"}
        """That we may use in multi-user mode."""
        self.may_share = True
        """In multi-user mode: whether we may write shared pipelines, which takes rights in Kubeflow's own namespace."""
        self.ended = threading.Event()
        self.token = ""
        self.cookie = ""
        self.faults = Faults()
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, Run] = {}
        self.logs: dict[str, str] = {}
        """Of each step, by its name."""
        self.is_ui = True
        """Whether this address is also the UI's, whose route gives the logs of running pods."""
        self.requests: list[str] = []
        self.outcome: Callable[[Pod], str] = lambda pod: SUCCEEDED
        """How each pod ends at the look after it began."""
        self.items: Callable[[str, tuple[int, ...]], int] = lambda loop, iterations: 1
        self.of_run: Callable[[dict[str, Any]], tuple[Any, Any]] = lambda body: (self.outcome, self.items)
        """Both of a run, by what it is created with."""
        self.lock = threading.RLock()


@contextlib.contextmanager
def kubeflow_server(certificates: Path | None = None) -> Iterator[KubeflowServer]:
    """Serve on a loopback port, with TLS where a folder with public.crt and private.key is given."""
    server = KubeflowServer()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if certificates else None
    if tls and certificates:
        tls.load_cert_chain(certificates / "public.crt", certificates / "private.key")
    with serving(type("OfServer", (_Handler,), {"state": server}), tls=tls) as listener:
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.server_port}"
        try:
            yield server
        finally:
            server.ended.set()


class _Handler(Handler):
    state: KubeflowServer

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
        request, faults = f"{method} {unquote(parts.path)}", self.state.faults
        if faults.hung and re.search(faults.hung, request):
            self.state.requests.append(request)
            self.state.ended.wait()
            self.close_connection = True
            return
        with self.state.lock:
            self.state.requests.append(request)
            if take(faults.dropped, request):
                self.close_connection = True
                return
            for pattern, answers in faults.answers.items():
                if answers and re.search(pattern, request):
                    status, text = answers.pop(0)
                    self._answer(status, text)
                    return
            try:
                status, answer = 200, self._do(request)
            except Refused as refused:
                status, answer = refused.status, refused.body
            if take(faults.lost, request):
                self.close_connection = True
                return
        self._answer(status, answer if isinstance(answer, str) else json.dumps(answer))

    def _answer(self, status: int, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        kind = "application/json" if text[:1] in ("{", "[") else "text/html" if text[:1] == "<" else "text/plain"
        self.send_header("Content-Type", kind if kind == "application/json" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _do(self, request: str) -> Any:
        self._authenticate()
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, request)
            if match:
                return method(self, *match.groups())
        raise Refused("runs/no-route")

    def _authenticate(self) -> None:
        given, cookie = self.headers.get("authorization"), self.headers.get("cookie")
        if self.state.token and given != f"Bearer {self.state.token}":
            raise Denied(401, "Request header error: there is no valid token", 16)
        if self.state.cookie and cookie != self.state.cookie:
            raise Denied(403, "User is not authorized", 7)
        if self.state.multi_user and "namespace" in self.query and self.query["namespace"] not in self.state.namespaces:
            raise Denied(403, f"User is not authorized in namespace {self.query['namespace']}", 7)

    def health(self) -> Any:
        return {"multi_user": self.state.multi_user}

    def page(self) -> Any:
        """The UI's own; the API's address has none."""
        if not self.state.is_ui:
            raise Refused("runs/no-route")
        return "<!doctype html><html><title>Kubeflow Pipelines</title></html>"

    def create_pipeline(self) -> Any:
        body = json.loads(self.body)
        self._authorize_write(body, 403)
        if any(_name(pipeline) == _name(body) for pipeline in self.state.pipelines.values()):
            raise Refused("pipelines/create-again")
        pipeline = {**body, "pipeline_id": str(uuid.uuid4()), "created_at": now()}
        self.state.pipelines[pipeline["pipeline_id"]] = pipeline
        return pipeline

    def list_pipelines(self) -> Any:
        return {"pipelines": _filtered(self.state.pipelines, self.query)}

    def pipeline_by_name(self, name: str) -> Any:
        """Shared where no namespace is asked for; a server for one user has none."""
        for pipeline in self.state.pipelines.values():
            if _name(pipeline) == (name, self.query.get("namespace", "") if self.state.multi_user else _name(pipeline)[1]):
                return pipeline
        raise Refused("pipelines/by-name-404")

    def _authorize_write(self, pipeline: dict[str, Any], status: int) -> None:
        if self.state.multi_user and not pipeline.get("namespace") and not self.state.may_share:
            raise Denied(status, "Failed to access shared pipeline: check if you have permission to create shared pipelines", 7)

    def delete_pipeline(self, pipeline: str) -> Any:
        if any(version["pipeline_id"] == pipeline for version in self.state.versions.values()):
            raise Refused("pipelines/delete-with-versions")
        if not self.state.pipelines.pop(pipeline, None):
            raise Refused("pipelines/delete-again")
        return {}

    def upload_pipeline(self) -> Any:
        self.body, package = b"", self.body
        self.body = json.dumps({"display_name": self.query["name"]}).encode()
        pipeline = self.create_pipeline()
        self.body = package
        self._add_version(pipeline["pipeline_id"], self.query["name"])
        return pipeline

    def upload_version(self) -> Any:
        name, pipeline = self.query["name"], self.query["pipelineid"]
        if pipeline not in self.state.pipelines:
            raise Refused("pipelines/upload-version-no-pipeline")
        self._authorize_write(self.state.pipelines[pipeline], 400)
        if any((version["pipeline_id"], version["display_name"]) == (pipeline, name) for version in self.state.versions.values()):
            raise Refused("pipelines/upload-version-same-name")
        return self._add_version(pipeline, name)

    def _add_version(self, pipeline: str, name: str) -> Any:
        """The package must be one that the real server takes: a file that ends in .yaml, a specification, perhaps a platform's."""
        message = BytesParser().parsebytes(b"Content-Type: " + self.headers["content-type"].encode() + b"\r\n\r\n" + self.body)
        (part,) = message.get_payload()  # type: ignore[misc]
        assert str(part.get_filename()).endswith(".yaml")  # type: ignore[union-attr]
        documents = list(yaml.load_all(part.get_payload(decode=True), Loader=yaml.CSafeLoader))  # type: ignore[union-attr]
        specification = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if len(documents) > 1 else documents[0]
        version = {
            "pipeline_id": pipeline,
            "pipeline_version_id": str(uuid.uuid4()),
            "display_name": name,
            "name": name,
            "description": self.query.get("description", ""),
            "created_at": now(),
            "pipeline_spec": specification,
        }
        self.state.versions[version["pipeline_version_id"]] = version
        return version

    def list_versions(self, pipeline: str) -> Any:
        """One a page, as if there were more than fit."""
        versions = [version for version in self.state.versions.values() if version["pipeline_id"] == pipeline]
        start = int(self.query.get("page_token") or 0)
        following = {"next_page_token": str(start + 1)} if start + 1 < len(versions) else {}
        return {"pipeline_versions": versions[start : start + 1], "total_size": len(versions), **following}

    def get_version(self, pipeline: str, version: str) -> Any:
        if version not in self.state.versions:
            raise Refused("pipelines/version-get-deleted")
        return self.state.versions[version]

    def delete_version(self, pipeline: str, version: str) -> Any:
        del self.state.versions[version]
        return {}

    def list_experiments(self) -> Any:
        return {"experiments": _filtered(self.state.experiments, self.query)}

    def create_experiment(self) -> Any:
        body = json.loads(self.body)
        if any(experiment["display_name"] == body["display_name"] for experiment in self.state.experiments.values()):
            raise Refused("experiments/create-again")
        experiment = {**body, "experiment_id": str(uuid.uuid4()), "created_at": now(), "storage_state": "AVAILABLE"}
        self.state.experiments[experiment["experiment_id"]] = experiment
        return experiment

    def create_run(self) -> Any:
        body = json.loads(self.body)
        reference = body["pipeline_version_reference"]
        version = self.state.versions.get(reference["pipeline_version_id"])
        if not version:
            raise Refused("runs/create-no-version")
        if body["experiment_id"] not in self.state.experiments:
            raise Refused("runs/create-no-experiment")
        if len(body["display_name"]) > NAME_BYTES:
            raise Refused("runs/create-long-name")
        specification = version["pipeline_spec"]
        inputs = specification.get("pipeline_spec", specification)["root"]["inputDefinitions"]["parameters"]
        for name, value in body["runtime_config"].get("parameters", {}).items():
            if name not in inputs:
                raise Refused("runs/create-unknown-parameter")
            if not isinstance(value, TYPES[inputs[name]["parameterType"]]):
                raise Refused("runs/create-wrong-type")
        documents = [specification.get("pipeline_spec", specification), specification.get("platform_spec", {})]
        run = Run(body, documents, f"firstsight-{len(self.state.runs)}", *self.state.of_run(body))
        self.state.runs[run.run_id] = run
        return run.look()

    def list_runs(self) -> Any:
        wanted = self.query.get("experiment_id")
        return {"runs": [run.told() for run in self.state.runs.values() if run.body["experiment_id"] == wanted]}

    def get_run(self, run: str) -> Any:
        return self._run(run, "runs/get-404").look()

    def terminate(self, run: str) -> Any:
        found = self._run(run, "runs/terminate-404")
        if found.state in ("SUCCEEDED", "FAILED"):
            raise Refused("runs/terminate-of-succeeded")
        if found.state == "CANCELING":
            raise Refused("runs/terminate-again-while-canceling")
        found.terminate()
        return {}

    def retry(self, run: str) -> Any:
        found = self._run(run, "runs/retry-404")
        if found.state != "FAILED":
            raise Refused("runs/retry-of-succeeded" if found.state == "SUCCEEDED" else "runs/retry-of-running")
        found.retry()
        return {}

    def _run(self, run: str, refusal: str) -> Run:
        if run not in self.state.runs:
            raise Refused(refusal)
        return self.state.runs[run]

    def log(self, run: str, node: str) -> Any:
        if run not in self.state.runs:
            return recordings.answer("logs/run-404.v1alpha1.http").body.decode()
        for step, own, state in self.state.runs[run].pods():
            if node in (own, self._pod(own)):
                return self.state.logs.get(step, "") if state != "RUNNING" else recordings.answer("logs/running-right.http").body.decode()
        return recordings.answer("logs/finished-nosuch.http").body.decode()

    def running_log(self) -> Any:
        if not self.state.is_ui:
            raise Refused("logs/ui-proxy-v1alpha1")
        for run in self.state.runs.values():
            for step, node, _ in run.pods():
                if self.query["podname"] == self._pod(node):
                    return self.state.logs.get(step, "")
        raise Refused("logs/ui-nosuch")

    @staticmethod
    def _pod(node: str) -> str:
        workflow, _, number = node.rpartition("-")
        return f"{workflow}-{POD}-{number}"


ROUTES = [
    (r"GET /", _Handler.page),
    (rf"GET {API}/pipelines/([^/]+)/versions/([^/]+)", _Handler.get_version),
    (rf"GET {API}/healthz", _Handler.health),
    (rf"POST {API}/pipelines", _Handler.create_pipeline),
    (rf"GET {API}/pipelines", _Handler.list_pipelines),
    (rf"GET {API}/pipelines/names/([^/]+)", _Handler.pipeline_by_name),
    (rf"DELETE {API}/pipelines/([^/]+)", _Handler.delete_pipeline),
    (rf"POST {API}/pipelines/upload", _Handler.upload_pipeline),
    (rf"POST {API}/pipelines/upload_version", _Handler.upload_version),
    (rf"GET {API}/pipelines/([^/]+)/versions", _Handler.list_versions),
    (rf"DELETE {API}/pipelines/([^/]+)/versions/([^/]+)", _Handler.delete_version),
    (rf"GET {API}/experiments", _Handler.list_experiments),
    (rf"POST {API}/experiments", _Handler.create_experiment),
    (rf"POST {API}/runs", _Handler.create_run),
    (rf"GET {API}/runs", _Handler.list_runs),
    (rf"GET {API}/runs/([^/:]+)", _Handler.get_run),
    (rf"POST {API}/runs/([^/:]+):terminate", _Handler.terminate),
    (rf"POST {API}/runs/([^/:]+):retry", _Handler.retry),
    (r"GET /k8s/pod/logs", _Handler.running_log),
    (r"GET /apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", _Handler.log),
]


def _name(pipeline: dict[str, Any]) -> tuple[str, str]:
    return pipeline["display_name"], pipeline.get("namespace") or ""


def _filtered(things: dict[str, dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    wanted = {"EQUALS": 1}
    found = list(things.values())
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        if wanted.get(predicate["operation"], predicate["operation"]) != 1:
            raise Denied(400, "Invalid input error: unknown filter operation", 3)
        found = [thing for thing in found if thing[predicate["key"]] == predicate["stringValue"]]
    return found
