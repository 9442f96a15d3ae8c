"""What firstsight asks of a Kubeflow Pipelines server, through kfp's generated client.

Not kfp.Client: its requests have no time-out, so a connection that silently broke would be waited for without end,
and it writes into the home folder. What may pass is tried again, jittered; what is wrong is said in one line.
"""

import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import InputError, RunError
from trainer.storage.retries import PASSING_STATUSES, Retries

FIRST_CONTACT_SECONDS = 30.0
REQUEST_SECONDS = (10.0, 60.0)
"""To connect, and without a byte of an answer."""
LOG_SECONDS = 10.0
"""Likewise, for a log."""
DEFAULT_NAMESPACE = "kubeflow"
"""Where a Kubeflow for one user runs its steps."""
LOGIN = "set KFP_TOKEN (bearer), KFP_COOKIE (of a logged-in browser) or KF_PIPELINES_SA_TOKEN_PATH (a service account's token file)"
Answer = TypeVar("Answer")
_NO_VERSION = re.compile(r"error retrieving pipeline version|retrieve pipeline version")
_TOO_LONG = "Data too long for column"
"""Words by which a 500 is known for a request that will never succeed."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server is and how it knows us.

    Attributes:
        host: URL of the API server, or of the UI that passes requests on.
        namespace: of the runs where the server has several; else empty.
        ca: file of the certificates that TLS trusts; empty: those of the system.
        ui: URL under which a person opens the UI.
        token: bearer token.
        token_file: file of a token that is renewed there, such as a pod's projected one.
        cookie: `name=value`, as a logged-in browser sends it.
    """

    host: str
    namespace: str = ""
    ca: str = ""
    ui: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    cookie: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without the server."""
        parts = urllib.parse.urlsplit(self.host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"KFP_ENDPOINT must be the http(s):// address of Kubeflow Pipelines, got {self.host!r}")
        for name, file in (("KFP_CA", self.ca), ("KF_PIPELINES_SA_TOKEN_PATH", self.token_file)):
            if file and not Path(file).is_file():
                raise InputError(f"{name} names {file}, which is no file")

    @classmethod
    def from_environment(cls, *, host: str, namespace: str, ca: str, ui: str) -> "Endpoint":
        """What the command line says, and the credentials that only the environment may hold."""
        get = os.environ.get
        return cls(
            host=host.rstrip("/"),
            namespace=namespace,
            ca=ca,
            ui=(ui or host).rstrip("/"),
            token=get("KFP_TOKEN", ""),
            token_file=get("KF_PIPELINES_SA_TOKEN_PATH", ""),
            cookie=get("KFP_COOKIE", ""),
        )


class NotThere(InputError):
    """The server has no such thing."""


class Kubeflow:
    """One server. Each method raises InputError where waiting cannot help, RunError where it did not."""

    def __init__(self, endpoint: Endpoint, *, retry_seconds: float = FIRST_CONTACT_SECONDS) -> None:
        """Connect lazily.

        Args:
            endpoint: where, and as whom.
            retry_seconds: how long a request is tried again.
        """
        import kfp_server_api as api

        self.endpoint = endpoint
        self.retry_seconds = retry_seconds
        configuration = api.Configuration()
        configuration.host = endpoint.host
        configuration.ssl_ca_cert = endpoint.ca or None
        configuration.retries = False  # here, where each failure is looked at
        if endpoint.token or endpoint.token_file:
            configuration.api_key = {"authorization": endpoint.token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
            if endpoint.token_file:
                configuration.refresh_api_key_hook = self._read_token
        self._client = api.ApiClient(configuration, cookie=endpoint.cookie or None)
        self._api = api
        self._pipelines, self._uploads = api.PipelineServiceApi(self._client), api.PipelineUploadServiceApi(self._client)
        self._experiments, self._runs = api.ExperimentServiceApi(self._client), api.RunServiceApi(self._client)

    def check(self) -> None:
        """That the server is there, is one, and lets us in.

        Raises:
            InputError: a wrong address, refused credentials, or a namespace that is missing or not wanted.
        """
        health = self._ask("healthz", self._api.HealthzServiceApi(self._client).healthz_service_get_healthz)
        if health.multi_user is None:  # a login page is read as an answer without anything in it
            raise InputError(f"{self.endpoint.host} answers, but not as Kubeflow Pipelines does; behind a login {LOGIN}")
        if health.multi_user and not self.endpoint.namespace:
            raise InputError(f"{self.endpoint.host} serves many namespaces: say which with KFP_NAMESPACE")

    def find_pipeline(self, name: str) -> str:
        """The id of a pipeline.

        Raises:
            NotThere: none of this name.
        """
        get = self._pipelines.pipeline_service_get_pipeline_by_name
        return str(self._ask(f"pipeline {name!r}", get, name, **self._in_namespace()).pipeline_id)

    def find_version(self, pipeline: str, content: str) -> tuple[str, str]:
        """Id and name of the version of a pipeline whose name ends with its content's hash; both empty where there is none."""
        found = (version for version in self._versions(pipeline) if str(version.display_name).endswith(content))
        return next(((str(version.pipeline_version_id), str(version.display_name)) for version in found), ("", ""))

    def upload(self, name: str, version: str, package: Path, content: str) -> tuple[str, str, str]:
        """Put a version there, unless its content is there; ids of pipeline and version, and the version's name. Safe to repeat.

        Args:
            name: the pipeline's; made where there is none.
            version: the version's, where it is new.
            package: the YAML file.
            content: its hash, with which `version` ends.
        """
        try:
            pipeline = self.find_pipeline(name)
        except NotThere:
            created = self._pipelines.pipeline_service_create_pipeline
            body = self._api.V2beta1Pipeline(display_name=name, name=name, namespace=self.endpoint.namespace or None)
            self._make(f"pipeline {name!r}", lambda: self._ask(f"pipeline {name!r}", created, body))
            pipeline = self.find_pipeline(name)
        if not self.find_version(pipeline, content)[0]:
            put, what = self._uploads.upload_pipeline_version, f"version {version!r} of pipeline {name!r}"
            self._make(what, lambda: self._ask(what, put, str(package), name=version, display_name=version, pipelineid=pipeline))
        return pipeline, *self.find_version(pipeline, content)

    def newest_image(self, name: str) -> str:
        """The image of the newest version of a pipeline: of an installed chart, the one that this cluster can pull.

        Raises:
            NotThere: no pipeline of this name, or one without versions.
        """
        versions = sorted(self._versions(self.find_pipeline(name)), key=lambda version: str(version.created_at))
        found = re.search(r'"image": "([^"]+)"', json.dumps(versions[-1].pipeline_spec)) if versions else None
        if not found:
            raise NotThere(f"{self.endpoint.host} has no version of pipeline {name!r}")
        return found[1]

    def delete_pipeline(self, name: str) -> bool:
        """Take a pipeline with its versions away; whether there was one. Its runs stay."""
        try:
            pipeline = self.find_pipeline(name)
            for version in list(self._versions(pipeline)):
                delete = self._pipelines.pipeline_service_delete_pipeline_version
                self._ask(f"version {version.display_name!r}", delete, pipeline, version.pipeline_version_id)
            self._ask(f"pipeline {name!r}", self._pipelines.pipeline_service_delete_pipeline, pipeline)
        except NotThere:
            return False
        return True

    def experiment(self, name: str) -> str:
        """The id of the experiment of this name, made where there is none."""
        found = self._find_experiment(name)
        if not found:
            body = self._api.V2beta1Experiment(display_name=name, namespace=self.endpoint.namespace or None)
            self._make(f"experiment {name!r}", lambda: self._ask(name, self._experiments.experiment_service_create_experiment, body))
            found = self._find_experiment(name)
        return found

    def start(
        self, name: str, *, experiment: str, pipeline: str, version: str, parameters: dict[str, Any], service_account: str = ""
    ) -> str:
        """Start a run; its id. `name` must be used once: by it a run is found whose answer got lost."""
        body = self._api.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            pipeline_version_reference=self._api.V2beta1PipelineVersionReference(pipeline_id=pipeline, pipeline_version_id=version),
            runtime_config=self._api.V2beta1RuntimeConfig(parameters=parameters),
            service_account=service_account or None,
        )
        retries = Retries(self.retry_seconds)
        while True:
            try:
                return str(self._once(f"run {name!r}", self._runs.run_service_create_run, body).run_id)
            except _Passing as error:
                retries.wait(str(error))
                started = self._find_run(name, experiment)
                if started:
                    return started

    def run(self, run: str) -> Any:
        """The run as it stands now (kfp_server_api.V2beta1Run)."""
        return self._ask(f"run {run}", self._runs.run_service_get_run, run)

    def terminate(self, run: str) -> None:
        """Ask the server to end a run. It says CANCELING, and in the end FAILED."""
        self._ask(f"run {run}", self._runs.run_service_terminate_run, run)

    def ended_log(self, run: str, node: str) -> str | None:
        """The whole log of a step that has ended, by its node's id; None where the server does not have it (yet).

        This route alone reads the archive, answers 200 whatever it means, and refuses every step that still runs.
        """
        text = self._text(f"{self.endpoint.host}/apis/v1alpha1/runs/{run}/nodes/{node}/log")
        return None if text is None or text.startswith('{"error_message"') else text

    def running_log(self, run: str, pod: str) -> str | None:
        """The log of a running step's pod so far, from the UI's own route, which cannot follow it; None where that does not give it."""
        query = urllib.parse.urlencode({"podname": pod, "podnamespace": self.endpoint.namespace or DEFAULT_NAMESPACE, "runid": run})
        text = self._text(f"{self.endpoint.ui or self.endpoint.host}/k8s/pod/logs?{query}")
        return None if text is None or text.lstrip()[:15].lower().startswith(("<!doctype", "<html", '{"error')) else text

    def _text(self, url: str) -> str | None:
        """The body of an answer that says 200, else None: a log is a convenience, the run's state is asked for elsewhere."""
        import urllib3

        pool = self._client.rest_client.pool_manager
        headers: dict[str, str] = {"Cookie": self.endpoint.cookie} if self.endpoint.cookie else {}
        self._client.update_params_for_auth(headers, [], ["Bearer"])
        timeout = urllib3.Timeout(connect=LOG_SECONDS, read=LOG_SECONDS)
        try:
            answer = pool.request("GET", url, headers=headers, timeout=timeout, retries=False, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError):
            return None
        return str(answer.data.decode(errors="replace")) if answer.status == 200 else None

    def link(self, run: str) -> str:
        """Where a person sees the run."""
        return f"{self.endpoint.ui}/#/runs/details/{run}"

    def _in_namespace(self) -> dict[str, str]:
        return {"namespace": self.endpoint.namespace} if self.endpoint.namespace else {}

    def _versions(self, pipeline: str) -> Iterator[Any]:
        listed = self._pipelines.pipeline_service_list_pipeline_versions
        yield from self._pages("pipeline versions", "pipeline_versions", lambda **page: self._ask("versions", listed, pipeline, **page))

    def _find_experiment(self, name: str) -> str:
        only = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        listed = self._experiments.experiment_service_list_experiments
        found = self._pages(
            "experiments", "experiments", lambda **page: self._ask(name, listed, filter=only, **self._in_namespace(), **page)
        )
        # An archived one takes no runs, and its name is taken.
        for experiment in found:
            if experiment.display_name == name:
                if experiment.storage_state == "ARCHIVED":
                    raise InputError(f"experiment {name!r} is archived in Kubeflow: restore it there, or choose another name")
                return str(experiment.experiment_id)
        return ""

    def _find_run(self, name: str, experiment: str) -> str:
        listed = self._runs.run_service_list_runs
        answer = self._ask(f"run {name!r}", listed, experiment_id=experiment, page_size=50, sort_by="created_at desc")
        return next((str(run.run_id) for run in answer.runs or [] if run.display_name == name), "")

    def _pages(self, what: str, key: str, ask: Callable[..., Any]) -> Iterator[Any]:
        token = ""
        while True:
            answer = ask(page_size=100, page_token=token)
            yield from getattr(answer, key) or []
            token = answer.next_page_token or ""
            if not token:
                return

    def _make(self, what: str, make: Callable[[], Any]) -> None:
        """Make something, where that it exists by now (another was faster, or our answer got lost) is as good."""
        try:
            make()
        except _Exists:
            return

    def _ask(self, what: str, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        """Ask until there is an answer or `retry_seconds` have passed; for what may be asked twice."""
        retries = Retries(self.retry_seconds)
        while True:
            try:
                return self._once(what, function, *args, **options)
            except _Passing as error:
                retries.wait(str(error))

    def _once(self, what: str, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        from urllib3.exceptions import HTTPError

        host = self.endpoint.host
        try:
            return function(*args, **options, _request_timeout=REQUEST_SECONDS)
        except self._api.ApiException as error:
            raise self._meaning(what, error) from error
        except (HTTPError, OSError) as error:
            reason = str(getattr(error, "reason", error))
            if "CERTIFICATE" in reason.upper():
                raise InputError(f"{host}: its certificate is not trusted ({reason}): give its CA as KFP_CA") from error
            raise _Passing(f"{host} cannot be reached: {reason.rpartition('>: ')[2]}") from error
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error.__context__, self._api.ApiException):  # the client stumbles over its own error without a body
                raise self._meaning(what, error.__context__) from error
            raise InputError(f"{host} answers, but not as Kubeflow Pipelines does; behind a login {LOGIN}") from error

    def _meaning(self, what: str, error: Any) -> Exception:
        host, status, said = self.endpoint.host, int(error.status or 0), _words(error)
        if "CERTIFICATE" in said.upper():
            return InputError(f"{host}: its certificate is not trusted ({said}): give its CA as KFP_CA")
        if status == 500 and _NO_VERSION.search(said):
            return NotThere(f"{host} has no such pipeline version, {what}: {said}")
        if status == 500 and _TOO_LONG in said:
            return InputError(f"{host} refuses {what}, whose name is too long: {said}")
        if status == 0 or status in PASSING_STATUSES:
            return _Exists(said) if _is_taken(said) else _Passing(f"{host} answers {status} to {what}: {said}")
        if status == 409 or (status == 400 and _is_taken(said)):
            return _Exists(said)
        if status in (401, 403):
            refused = "does not know us" if status == 401 else "does not let us"
            return InputError(f"{host} {refused} ({status}, {what}): {said}; {LOGIN}")
        if 300 <= status < 400:
            return InputError(f"{host} sends us elsewhere ({status}), as before a login: {LOGIN}; or give the address it redirects to")
        if status == 404:
            return NotThere(f"{host} has no {what}: {said}")
        return InputError(f"{host} refuses {what} ({status}): {said}")

    def _read_token(self, configuration: Any) -> None:
        configuration.api_key["authorization"] = Path(self.endpoint.token_file).read_text().strip()


class _Passing(RunError):
    """The server did not answer, or not for now."""


class _Exists(RunError):
    """What was to be made is there."""


def _is_taken(said: str) -> bool:
    """Whether the server's words mean that the name is in use: its codes for that differ between its versions."""
    return "already exist" in said.lower() or "already been used" in said.lower()


def _words(error: Any) -> str:
    """The server's own words, of the JSON in which it says them."""
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error") or body)
    except (ValueError, TypeError, AttributeError):
        text = str(error.body or error.reason or "")
    return " ".join(text.split())[:400]
