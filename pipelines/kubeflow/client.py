"""Client for a Kubeflow Pipelines server, based on kfp's generated API client.

kfp.Client is not used: its requests have no timeout, so it would wait forever on a silently broken connection,
and it writes to the home folder. Transient failures are retried with jitter; errors are reported in one line.
"""

import contextlib
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pipelines.kubeflow.endpoint import DEFAULT_NAMESPACE, LOGIN, Endpoint
from trainer.errors import InputError, RunError
from trainer.redaction import conceal, without_credentials
from trainer.storage.retries import PASSING_STATUSES, Retries

FIRST_CONTACT_SECONDS = 30.0
REQUEST_SECONDS = (10.0, 60.0)
"""Connect timeout, and read timeout without a byte of a response."""
LOG_SECONDS = 10.0
"""The same for a log."""
Answer = TypeVar("Answer")
_POLICY = (
    "; Kubeflow's own NetworkPolicy only admits traffic from its own namespace and those labelled "
    "app.kubernetes.io/part-of=kubeflow-profile (docs/OPERATIONS.md)"
)
"""Hint for when no response arrives, which may mean that packets were dropped."""
_NO_VERSION = re.compile(r"error retrieving pipeline version|retrieve pipeline version")
_TOO_LONG = "Data too long for column"
"""Text that identifies a 500 as a request that will never succeed."""


class NotFound(InputError):
    """The requested object does not exist on the server."""


class Kubeflow:
    """One server. Methods raise InputError if waiting cannot help, and RunError if waiting did not help."""

    def __init__(self, endpoint: Endpoint, *, retry_seconds: float = FIRST_CONTACT_SECONDS) -> None:
        """Connect lazily.

        Args:
            endpoint: the server's address and the credentials to use.
            retry_seconds: how long to keep retrying a request.
        """
        import kfp_server_api as api

        self.endpoint = endpoint
        self.retry_seconds = retry_seconds
        configuration = api.Configuration()
        configuration.host = endpoint.host
        configuration.ssl_ca_cert = endpoint.ca or None
        configuration.retries = False  # retries are done here, where each failure is examined
        if endpoint.token or endpoint.token_file:
            configuration.api_key = {"authorization": endpoint.token}
            configuration.api_key_prefix = {"authorization": "Bearer"}
            if endpoint.token_file:
                configuration.refresh_api_key_hook = self._read_token
        self._client = api.ApiClient(configuration, cookie=endpoint.cookie or None)
        self._api, self._ui = api, ""
        self._pipelines, self._uploads = api.PipelineServiceApi(self._client), api.PipelineUploadServiceApi(self._client)
        self._experiments, self._runs = api.ExperimentServiceApi(self._client), api.RunServiceApi(self._client)

    def check(self, *, runs: bool) -> None:
        """Check that the server exists, is Kubeflow Pipelines, and accepts our credentials.

        Args:
            runs: whether runs will be started, which needs a namespace in multi-user mode.

        Raises:
            InputError: a wrong address, refused credentials, another version, or a missing namespace.
        """
        host = self.endpoint.host
        try:
            health = self._ask("healthz", self._api.HealthzServiceApi(self._client).healthz_service_get_healthz)
        except NotFound as error:
            raise InputError(f"{host} has no API v2beta1, which Kubeflow Pipelines 2 serves: {error}") from error
        if health.multi_user is None:
            raise InputError(f"{host} responds, but not like Kubeflow Pipelines; if it is behind a login, {LOGIN}")
        if runs and health.multi_user and not self.endpoint.namespace:
            raise InputError(f"{host} serves several namespaces: set KFP_NAMESPACE to choose one")

    def find_pipeline(self, name: str, namespace: str) -> str:
        """The id of a pipeline.

        Args:
            name: of the pipeline.
            namespace: the namespace that owns it; empty: look for the shared pipeline.

        Raises:
            NotFound: there is no pipeline with this name.
        """
        get, where = self._pipelines.pipeline_service_get_pipeline_by_name, {"namespace": namespace} if namespace else {}
        return str(self._ask(f"pipeline {name!r}", get, name, **where).pipeline_id)

    def usable_pipelines(self, name: str) -> Iterator[str]:
        """The ids of the pipelines with this name that runs in our namespace may use: the namespace's own, then the shared one."""
        for namespace in dict.fromkeys((self.endpoint.namespace, "")):
            try:
                yield self.find_pipeline(name, namespace)
            except NotFound:
                continue

    def find_version(self, pipeline: str, content: str) -> tuple[str, str]:
        """Id and name of the version of a pipeline whose name ends with its content's hash; both empty if there is none."""
        found = (version for version in self._versions(pipeline) if str(version.display_name).endswith(content))
        return next(((str(version.pipeline_version_id), str(version.display_name)) for version in found), ("", ""))

    def upload(self, name: str, version: str, package: Path, content: str, description: str) -> tuple[str, str, str]:
        """Upload a version unless its content already exists; returns the ids of pipeline and version, and the version's name. Idempotent.

        Args:
            name: the pipeline's name; if there is none, it is created, owned by our namespace, or shared if we name no namespace.
            version: the name for the version, if it is new.
            package: the YAML file.
            content: hash of its content, with which `version` ends.
            description: Markdown for whoever finds it in the UI.
        """
        owner = self.endpoint.namespace
        try:
            pipeline = self.find_pipeline(name, owner)
        except NotFound:
            created = self._pipelines.pipeline_service_create_pipeline
            body = self._api.V2beta1Pipeline(display_name=name, name=name, description=description, namespace=owner or None)
            self._make(f"pipeline {name!r}", created, body)
            pipeline = self.find_pipeline(name, owner)
        if not self.find_version(pipeline, content)[0]:
            put, said = self._uploads.upload_pipeline_version, {"name": version, "display_name": version, "description": description}
            self._make(f"version {version!r} of pipeline {name!r}", put, str(package), pipelineid=pipeline, **said)
        return pipeline, *self.find_version(pipeline, content)

    def version(self, pipeline: str, version: str) -> Any:
        """A version (kfp_server_api.V2beta1PipelineVersion). NotFound: it was deleted, and the UI no longer shows pages of its runs."""
        get = self._pipelines.pipeline_service_get_pipeline_version
        return self._ask(f"version {version} of pipeline {pipeline}", get, pipeline, version)

    def newest(self, name: str) -> tuple[str, str]:
        """Image and user of a pipeline's newest version: for an installed chart, these are what this cluster can pull and allows to run.

        The user is the one the steps' pods run as, or `none` if the version leaves it to the cluster.

        Raises:
            NotFound: no pipeline of this name, or one without versions.
        """
        for pipeline in self.usable_pipelines(name):
            versions = sorted(self._versions(pipeline), key=lambda version: str(version.created_at))
            text = json.dumps(versions[-1].pipeline_spec) if versions else ""
            image, user = re.search(r'"image": "([^"]+)"', text), re.search(r'"runAsUser": "(\d+)"', text)
            if image:
                return image[1], user[1] if user else "none"
        raise NotFound(f"{self.endpoint.host} has no version of pipeline {name!r}")

    def delete_pipeline(self, name: str) -> bool:
        """Delete a pipeline and its versions; returns whether it existed. Its runs remain, without their pages in the UI."""
        try:
            pipeline = self.find_pipeline(name, self.endpoint.namespace)
            for version in list(self._versions(pipeline)):
                delete = self._pipelines.pipeline_service_delete_pipeline_version
                self._ask(f"version {version.display_name!r}", delete, pipeline, version.pipeline_version_id)
            self._ask(f"pipeline {name!r}", self._pipelines.pipeline_service_delete_pipeline, pipeline)
        except NotFound:
            return False
        return True

    def experiment(self, name: str) -> str:
        """The id of the experiment with this name, created if it does not exist."""
        found = self._find_experiment(name)
        if not found:
            body = self._api.V2beta1Experiment(display_name=name, namespace=self.endpoint.namespace or None)
            self._make(f"experiment {name!r}", self._experiments.experiment_service_create_experiment, body)
            found = self._find_experiment(name)
        return found

    def start(
        self, name: str, *, experiment: str, pipeline: str, version: str, parameters: dict[str, Any], service_account: str = ""
    ) -> str:
        """Start a run and return its id. `name` must be unique: it is used to find a run whose response was lost."""
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
            except _Transient as error:
                retries.wait(str(error))
                started = self._find_run(name, experiment)
                if started:
                    return started

    def run(self, run: str) -> Any:
        """The current state of a run (kfp_server_api.V2beta1Run).

        Raises:
            NotFound: it was deleted.
        """
        found = self._ask(f"run {run}", self._runs.run_service_get_run, run)
        if not _is_run(found):
            raise InputError(f"{self.endpoint.host} responds, but not like Kubeflow Pipelines, when asked for run {run}")
        return found

    def terminate(self, run: str) -> None:
        """Ask the server to terminate a run. Its state becomes CANCELING, and finally FAILED."""
        self._ask(f"run {run}", self._runs.run_service_terminate_run, run)

    def retry(self, run: str) -> None:
        """Ask the server to rerun what failed in a run, and what was skipped because of it."""
        self._ask(f"run {run}", self._runs.run_service_retry_run, run)

    def ended_log(self, run: str, node: str) -> str | None:
        """The whole log of a step that has ended, by its node's id; None if the server does not have it (yet).

        Only this route reads the archive; it always returns 200, and it rejects steps that are still running.
        """
        text = self._text(f"{self.endpoint.host}/apis/v1alpha1/runs/{run}/nodes/{node}/log")
        return None if text is None or text.startswith('{"error_message"') else text

    def running_log(self, run: str, pod: str) -> str | None:
        """The log of a running step's pod so far, from the UI's own route, which cannot follow logs; None if that does not return it."""
        query = urllib.parse.urlencode({"podname": pod, "podnamespace": self.endpoint.namespace or DEFAULT_NAMESPACE, "runid": run})
        text = self._text(f"{self.endpoint.ui or self.endpoint.host}/k8s/pod/logs?{query}")
        return None if text is None or _is_page(text) or text.startswith('{"error') else text

    def _text(self, url: str) -> str | None:
        """The body of a 200 response, otherwise None: a log is only a convenience; the run's state is queried elsewhere."""
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
        """The URL of the run's page; empty if the UI's address is unknown, since the API's address serves no page."""
        if not self._ui:
            page = self._text(f"{self.endpoint.host}/") or "" if not self.endpoint.ui else ""
            self._ui = self.endpoint.ui or (self.endpoint.host if _is_page(page) else "")
        return f"{self._ui}/#/runs/details/{run}" if self._ui else ""

    def _in_namespace(self) -> dict[str, str]:
        return {"namespace": self.endpoint.namespace} if self.endpoint.namespace else {}

    def _versions(self, pipeline: str) -> Iterator[Any]:
        listed = self._pipelines.pipeline_service_list_pipeline_versions
        yield from self._pages("pipeline_versions", lambda **page: self._ask("versions", listed, pipeline, **page))

    def _find_experiment(self, name: str) -> str:
        only = json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
        listed = self._experiments.experiment_service_list_experiments
        found = self._pages("experiments", lambda **page: self._ask(name, listed, filter=only, **self._in_namespace(), **page))
        # An archived experiment would accept the run, but nobody would look for it there.
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

    def _pages(self, key: str, ask: Callable[..., Any]) -> Iterator[Any]:
        token = ""
        while True:
            answer = ask(page_size=100, page_token=token)
            yield from getattr(answer, key) or []
            token = answer.next_page_token or ""
            if not token:
                return

    def _make(self, what: str, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Create something; that it already exists by now (someone was faster, or our response was lost) is fine too."""
        with contextlib.suppress(_Exists):
            self._ask(what, function, *args, **options)

    def _ask(self, what: str, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        """Retry until there is a response or `retry_seconds` have passed; for idempotent requests."""
        retries = Retries(self.retry_seconds)
        while True:
            try:
                return self._once(what, function, *args, **options)
            except _Transient as error:
                retries.wait(str(error))

    def _once(self, what: str, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        from urllib3.exceptions import HTTPError

        host = self.endpoint.host
        try:
            answer = function(*args, **options, _request_timeout=REQUEST_SECONDS)
        except self._api.ApiException as error:
            raise self._meaning(what, error) from error
        except (HTTPError, OSError) as error:
            reason = str(getattr(error, "reason", error))
            if "CERTIFICATE" in reason.upper():
                raise InputError(f"{host}: its certificate is not trusted ({reason}): set KFP_CA to its CA") from error
            raise _Transient(
                f"{host} cannot be reached: {reason.rpartition('>: ')[2]}{_POLICY if 'KUBERNETES_SERVICE_HOST' in os.environ else ''}"
            ) from error
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            if isinstance(error.__context__, self._api.ApiException):  # the client fails while handling its own error if that has no body
                raise self._meaning(what, error.__context__) from error
            raise InputError(f"{host} responds, but not like Kubeflow Pipelines; if it is behind a login, {LOGIN}") from error
        # A login page would be parsed as an empty response.
        if "html" in str(self._client.last_response.getheader("content-type")):
            raise InputError(f"{host} responds with a web page instead of the Kubeflow Pipelines API; if it is behind a login, {LOGIN}")
        return answer

    def _meaning(self, what: str, error: Any) -> Exception:
        host, status, said = self.endpoint.host, int(error.status or 0), _words(error)
        if "CERTIFICATE" in said.upper():
            return InputError(f"{host}: its certificate is not trusted ({said}): give its CA as KFP_CA")
        if status == 500 and _NO_VERSION.search(said):
            return NotFound(f"{host} has no such pipeline version, {what}: {said}")
        if status == 500 and _TOO_LONG in said:
            return InputError(f"{host} refuses {what}, whose name is too long: {said}")
        if status == 0 or status in PASSING_STATUSES:
            return _Exists(said) if _is_taken(said) else _Transient(f"{host} answers {status} to {what}: {said}")
        if status == 409 or (status == 400 and _is_taken(said)):
            return _Exists(said)
        if status in (401, 403):
            refused = "rejected our credentials" if status == 401 else "denied permission"
            return InputError(f"{host} {refused} ({status}, {what}): {said}; {LOGIN}")
        if 300 <= status < 400:
            return InputError(f"{host} redirects us ({status}), probably to a login: {LOGIN}, or use the address it redirects to")
        if status == 404:
            return NotFound(f"{host} has no {what}: {said}")
        return InputError(f"{host} refuses {what} ({status}): {said}")

    def _read_token(self, configuration: Any) -> None:
        token = Path(self.endpoint.token_file).read_text().strip()
        conceal(token)
        configuration.api_key["authorization"] = token


class _Transient(RunError):
    """The server did not respond, or temporarily cannot."""


class _Exists(RunError):
    """The object to be created already exists."""


def _is_run(found: Any) -> bool:
    """Whether the client parsed a response into a run whose string fields are strings: the client checks neither."""
    tasks = (getattr(getattr(found, "run_details", None), "task_details", None)) or []
    children = [child for task in tasks for child in task.child_tasks or []]
    words = [getattr(found, "state", 0), *(task.state for task in tasks), *(child.pod_name for child in children)]
    return all(word is None or isinstance(word, str) for word in words)


def _is_page(text: str) -> bool:
    """Whether it is a web page."""
    return text.lstrip()[:15].lower().startswith(("<!doctype", "<html"))


def _is_taken(said: str) -> bool:
    """Whether the server's words mean that the name is in use: the status codes for that differ between server versions."""
    return "already exist" in said.lower() or "already been used" in said.lower()


def _words(error: Any) -> str:
    """The server's own message, extracted from its JSON."""
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error") or body)
    except (ValueError, TypeError, AttributeError):
        text = str(error.body or error.reason or "")
    return " ".join(without_credentials(text).split())[:400]
