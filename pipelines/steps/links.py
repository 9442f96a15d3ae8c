"""The first step: refuse an impossible request immediately, and show where to watch the run.

Kubeflow's UI shows only the log of a launcher and, at the end, its artifacts; everything else worth watching is elsewhere.
"""

import os
import textwrap
from pathlib import Path
from urllib.parse import quote

from pipelines.cluster.connection import Cluster, missing_kind
from pipelines.cluster.kueue import QUEUE_LABEL, Kueue
from pipelines.cluster.names import DOMAIN
from pipelines.jobs.shapes import LOCAL, by_backend, require_backend
from pipelines.jobs.shapes.indexed import JOB
from pipelines.planning.request import FIELDS, Request, is_inline, merge, root_given, write_request
from pipelines.planning.resolving import resolve
from pipelines.planning.runs import write_run
from pipelines.planning.summary import preview
from pipelines.profile.profile import Profile, job_settings, parallel_cells_of, read_profile
from pipelines.steps.checking import check_experiment
from pipelines.steps.notes import as_code, as_text
from pipelines.steps.running import in_run, recorded, root_of_run, step
from trainer.errors import InputError, RunError
from trainer.progress import counted
from trainer.storage import join, layout, open_store

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_VARIABLE = "KFP_POD_NAME"
_PROFILE_IN_FORM = FIELDS["profile"].metadata["form"]
CHECKED_VARIABLE = "FIRSTSIGHT_CHECKED"
"""URI of the request, if the steps run on the same machine as the run's own process, which has already checked it."""


@step
def accept(*, request: str, profile: str, run: str, **given: str) -> tuple[str, str]:
    """Check a run's request and store it.

    Args:
        request: a request file's URI, or its YAML; may be empty.
        profile: name of the ConfigMap that is mounted as profile.
        run: the run's id.
        **given: every other parameter; an empty one is not given, any other overrides the request's.

    Returns:
        The URI of the stored request with the run's id, and a page of links as Markdown.

    Raises:
        InputError: what the user has to fix first; also written to failure.json in the experiment's folder.
    """
    mounted = read_profile()
    _require_profile(profile, mounted)
    if POD_VARIABLE in os.environ and not is_inline(request):
        mounted.check_address("request", request)
    root = root_of_run(root_given(request, given.get("root", "")), mounted)
    _require_keys(profile, root)
    named = given.get("experiment", "")
    try:
        asked = merge(request, given)
        named = asked.experiment or named
        _require_mounted(asked, profile)
        if POD_VARIABLE in os.environ:
            mounted.check_addresses(asked)  # before resolving it reads a recipe
        asked = resolve(asked, kubeflow=POD_VARIABLE in os.environ)
        known = read_profile(backend=asked.backend)
        known.check_addresses(asked)
        require_backend(known.backend)
        checked = os.environ.get(CHECKED_VARIABLE) == layout.request(layout.experiment(root, asked.experiment), asked.id)
        notes = [] if checked else check_experiment(*preview(asked, root), known, asked)
        _require_cluster(known, asked)
    except (InputError, RunError):
        if named:
            with recorded(layout.experiment(root, named), "links"):
                raise
        raise
    uri = layout.experiment(root, asked.experiment)
    open_store(uri).delete(layout.failure(uri))
    stored = write_request(asked, root)
    write_run(root, run, stored)
    namespace = known.jobs.namespace or (NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default")
    page = _page(known, stored, run, asked, namespace, notes)
    print(page, flush=True)  # the UI shows a step's log at once, its artifacts when it has ended
    return in_run(stored, run), page


def _require_mounted(request: Request, profile: str) -> None:
    """Refuse a request that names another profile: on Kubeflow the run's parameter determines which profile is mounted into every pod."""
    if os.environ.get(POD_VARIABLE) and request.profile not in ("", profile):
        raise InputError(
            f"profile is {request.profile!r} in the request, but the run's parameter {_PROFILE_IN_FORM} is {profile!r}: set the parameter "
            "to match"
        )


def _require_cluster(profile: Profile, request: Request) -> None:
    """Refuse what would otherwise fail after hours of staging.

    That is a kind of job that the cluster does not serve, or in no form that can express the profile's pod templates, and a queue
    of Kueue's that admits nothing. Other queues are not known here.
    """
    if profile.backend == LOCAL:
        return
    settings = job_settings(profile, request)
    cluster, shape = Cluster.connect(settings.namespace), by_backend()[profile.backend](settings)
    if not cluster.api.serves(shape.kind.api_version, shape.kind.plural):
        raise missing_kind(cluster.api, shape.kind)
    shape.served_by(cluster.api)
    if queue := settings.labels.get(QUEUE_LABEL, ""):
        Kueue(cluster).require(queue)


def _require_profile(name: str, profile: Profile) -> None:
    """ConfigMap and Secret are mounted only if they exist; report it here if they do not."""
    if os.environ.get(POD_VARIABLE) and profile == Profile():
        raise InputError(f"profile: there is no ConfigMap {name!r} with profile.yaml in this namespace; `helm install` creates one")


def _require_keys(name: str, root: str) -> None:
    """The Secret is mounted only if it exists; report it here if it does not, instead of asking for a variable."""
    from trainer.storage.s3_settings import has_credentials  # here: slow to import

    if os.environ.get(POD_VARIABLE) and root.startswith("s3://") and not has_credentials():
        raise InputError(
            f"profile: there is no Secret {name!r} with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in this namespace: "
            "`helm install` creates one, or, if secret.create is false, you provide it; with workloadIdentity.enabled the cloud identifies "
            "the account of the steps, which it does not know here"
        )


def _page(profile: Profile, stored: str, run: str, request: Request, namespace: str, notes: list[str]) -> str:
    experiment, cells = request.experiment, request.cells
    uri = layout.experiment(layout.of_request(stored)[0], experiment)
    links = [
        f"- [{what}]({_filled(address, experiment=experiment, namespace=namespace)})"
        for what, address in (
            ("Dashboard", profile.links.dashboard),
            ("Bucket", profile.links.bucket),
            ("This run in Kubeflow", profile.links.kubeflow and f"{profile.links.kubeflow.rstrip('/')}/#/runs/details/{run}"),
        )
        if address
    ]
    parallel = parallel_cells_of(profile, request)
    at_once = "one after another" if parallel == 1 else "as the queue admits them" if parallel == 0 else f"{parallel} at once"
    count = counted(len(cells), "cell") + (f", {at_once}" if len(cells) > 1 else "")
    parts = [f"# {experiment}", f"{count}: {', '.join(f'`{cell}`' for cell in cells)}"]
    parts += [
        "\n".join(
            [
                *links,
                f"- the request: {as_code(stored)}",
                f"- everything: {as_code(uri)}",
                f"- the report, at the end: {as_code(join(layout.report(uri), 'index.html'))}",
            ]
        )
    ]
    parts += ["\n".join(f"- note: {as_text(note)}" for note in notes)] if notes else []
    if profile.backend != "local":
        resources = f"{by_backend()[profile.backend].kind.plural},{JOB.plural}"
        parts += _cluster_lines(resources, experiment, namespace)
    return "\n\n".join(parts) + "\n"


def _filled(address: str, **values: str) -> str:
    """An address with `{name}` replaced for each name; other braces stay, since Grafana's own links use them (`${__from}`)."""
    for name, value in values.items():
        address = address.replace(f"{{{name}}}", quote(value, safe=""))
    return address


def _wrapped(command: str) -> str:
    """A command split into lines short enough for the UI."""
    return " \\\n".join(textwrap.wrap(command, 76, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def _cluster_lines(resources: str, experiment: str, namespace: str) -> list[str]:
    selector = f"{DOMAIN}/experiment={experiment}"
    commands = (
        f"kubectl -n {namespace} get {resources},pods -l {selector}",
        f"kubectl -n {namespace} logs -f --prefix --tail 20 --max-log-requests 64 -l {selector},app.kubernetes.io/component=trainer",
        f"kubectl -n {namespace} get events --sort-by .lastTimestamp",
        f"python -m pipelines status --namespace {namespace} --experiment {experiment}",
        f"python -m pipelines cancel {experiment} --namespace {namespace}",
    )
    return [
        "\n".join(["```sh", *map(_wrapped, commands), "```"]),
        "The log of each launcher is that of its job's first node. *Terminate* frees the GPUs; *Retry*, or a new run of the same "
        "experiment, resumes from the last checkpoint.",
    ]
