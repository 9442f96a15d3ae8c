"""`python -m pipelines check`: does a cluster have what runs need? One line a check; exit 1 if one fails.

check run        what a run meets, with its own account and credentials: `helm test`
check reaper     the reaper's rights
check idle       no job lives: the chart asks before it is uninstalled
check preflight  what a cluster lacks for a rendered chart: `make chart-preflight`
"""

import argparse
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from pipelines.cluster.api import Api, Refused
from pipelines.cluster.connection import POD, Cluster, MissingKind
from pipelines.cluster.kueue import Kueue
from pipelines.jobs.holds import has_ended
from pipelines.jobs.shapes import job_kinds
from pipelines.jobs.shapes.indexed import JOB
from pipelines.operate.chart_preflight import preflight
from pipelines.operate.kubeflow_preflight import HEALTH, LET_IN, judge_health
from pipelines.operate.probes import QUEUE_RIGHTS, REAPER_RIGHTS, RUN_RIGHTS, Check, allowed, kueues, needed_kinds, served
from trainer.errors import InputError, RunError

LIVING = "app.kubernetes.io/part-of=firstsight,app.kubernetes.io/component=trainer"
_HOOKS = frozenset({"check", "bucket", "pipeline"})


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `check`."""
    parser = commands.add_parser("check", parents=[common], help="check that a cluster has what runs need")
    checks = parser.add_subparsers(dest="what", required=True)
    run = checks.add_parser(
        "run",
        parents=[common],
        help="check the store, permissions and kinds that the profile needs, with this pod's service account",
    )
    run.add_argument("--nodes", action="store_true", help="also check that nodes are readable")
    run.add_argument("--kubeflow", default="", metavar="URL", help="API of Kubeflow Pipelines that must be healthy")
    run.add_argument("--prometheus", default="", metavar="URL", help="Prometheus that must be ready")
    run.set_defaults(run=_run)
    reaper = checks.add_parser("reaper", parents=[common], help="check the reaper's permissions, with this pod's service account")
    idle = checks.add_parser("idle", parents=[common], help="check that no job is running in these namespaces")
    for one in (reaper, idle):
        one.add_argument("--namespace", action="append", required=True, help="a namespace to check; may be repeated")
    reaper.set_defaults(run=_reaper)
    idle.add_argument(
        "--sweep", default="", metavar="NAMESPACE/RELEASE", help="if no job is running, remove the leftovers of failed hooks and tests"
    )
    idle.set_defaults(run=_idle)
    preflight = checks.add_parser("preflight", parents=[common], help="list what the cluster lacks for a rendered chart, read from stdin")
    preflight.add_argument("--cuda", default="", help="CUDA of the trainer image, such as 12.6, if it is not the pinned torch's")
    preflight.set_defaults(run=_preflight)


def run_checks(checks: Iterable[Check]) -> int:
    """Print one line per check, and at the end how many failed; the exit code."""
    failed = 0
    for name, look in checks:
        try:
            print(f"ok    {name}: {look()}", flush=True)
        except (InputError, RunError, Refused) as error:
            failed += 1
            print(f"FAIL  {name}: {' '.join(str(error).split())}", flush=True)
    print(f"{failed} failed" if failed else "all is well", flush=True)
    return 1 if failed else 0


def _run(options: argparse.Namespace) -> int:
    from pipelines.profile.profile import read_profile

    profile = read_profile()
    for name, value in profile.jobs.store_environment.items():
        os.environ.setdefault(name, value)
    api = Api.connect(profile.jobs.namespace)
    checks: list[Check] = [(f"store {profile.root}", partial(round_trip, profile.root))]
    queues = kueues(profile)
    rights = {**RUN_RIGHTS, **(QUEUE_RIGHTS if queues else {})}
    checks += [(f"right to {resource}", partial(_rights, api, resource, verbs, api.namespace)) for resource, verbs in rights.items()]
    checks += [(f"queue {queue}", partial(Kueue(Cluster(api)).require, queue, active=False)) for queue in queues]
    if options.nodes:
        checks.append(("right to nodes", partial(_rights, api, "nodes", ("get", "list"), "")))
    kinds = needed_kinds(profile, kubeflow=bool(options.kubeflow))
    checks += [(f"kind {kind.kind}", partial(served, api, kind, profile.jobs)) for kind in kinds]
    if options.kubeflow:
        checks.append((f"Kubeflow Pipelines {options.kubeflow}", partial(_kubeflow, options.kubeflow)))
    if options.prometheus:
        checks.append((f"Prometheus {options.prometheus}", partial(_ready, options.prometheus)))
    return run_checks(checks)


def _reaper(options: argparse.Namespace) -> int:
    api = Api.connect()
    pairs = [(namespace, resource, verbs) for namespace in options.namespace for resource, verbs in REAPER_RIGHTS.items()]
    return run_checks(
        (f"permission for {resource} in {namespace}", partial(_rights, api, resource, verbs, namespace))
        for namespace, resource, verbs in pairs
    )


def _idle(options: argparse.Namespace) -> int:
    cluster = Cluster.connect()
    code = run_checks((f"jobs in {namespace}", partial(_no_live_job, cluster, namespace)) for namespace in options.namespace)
    if code == 0 and options.sweep:
        own, _, release = options.sweep.partition("/")
        for namespace in sorted({own, *options.namespace}):
            _sweep(cluster, namespace, release)
    return code


def _preflight(options: argparse.Namespace) -> int:
    return run_checks(preflight(cuda=options.cuda))


def round_trip(root: str) -> str:
    """Write, read, list and delete one object below `root`.

    Raises:
        InputError: the store refuses.
        RunError: it answers with something else, or not at all.
    """
    from trainer.storage import join, open_store, read_bytes, write_bytes

    began, data = time.monotonic(), secrets.token_bytes(1 << 20)
    folder = join(root, ".check", secrets.token_hex(8))
    uri = join(folder, "object")
    store = open_store(uri)
    write_bytes(uri, data)
    try:
        if read_bytes(uri) != data:
            raise RunError(f"{uri}: the bytes read back differ from those written")
        if [info.uri for info in store.list(folder)] != [uri]:
            raise RunError(f"{uri}: was written, but is not listed")
    finally:
        store.delete(uri)
    if store.head(uri) is not None:
        raise RunError(f"{uri}: was deleted, but is still there")
    return f"1 MiB written, read, listed and deleted in {time.monotonic() - began:.1f} s"


def _rights(api: Api, resource: str, verbs: Sequence[str], namespace: str) -> str:
    missing = [verb for verb in verbs if not allowed(api, verb, resource, namespace)]
    if missing:
        raise InputError(f"no permission to {', '.join(missing)} in {f'namespace {namespace}' if namespace else 'the cluster'}")
    return " ".join(verbs)


def _kubeflow(url: str) -> str:
    """A login page answers 200 too, so the answer is read."""
    try:
        return judge_health(url, _get(url, HEALTH, os.environ.get("KFP_CA", "")))
    except RunError as error:
        raise RunError(f"{error}; {LET_IN}") from error


def _ready(url: str) -> str:
    _get(url, "/-/ready", "")
    return "ready"


def _get(url: str, path: str, ca: str) -> bytes:
    """The body of an answer that says 200."""
    import urllib3

    whole = url.rstrip("/") + path
    pool = urllib3.PoolManager(ca_certs=ca) if ca else urllib3.PoolManager()
    try:
        answer = pool.request("GET", whole, timeout=10.0, retries=2)
    except urllib3.exceptions.HTTPError as error:
        raise RunError(f"{whole} does not respond: {error}") from error
    if answer.status != 200:
        raise InputError(f"{whole} responded with {answer.status}")
    return bytes(answer.data)


def _no_live_job(cluster: Cluster, namespace: str) -> str:
    living = []
    for kind in job_kinds():
        try:
            jobs = cluster.list(kind, labels=LIVING, namespace=namespace)
        except MissingKind:
            continue
        living += [f"{kind.kind} {job['metadata']['name']}" for job in jobs if not has_ended(job)]
    if living:
        raise InputError(
            f"{', '.join(living)} still running: cancel them (python -m pipelines cancel), or first set uninstall.force=true in an upgrade"
        )
    return "none lives"


def _sweep(cluster: Cluster, namespace: str, release: str) -> None:
    """Hooks and tests that failed stay for their logs, and Helm forgets them."""
    for kind in (JOB, POD):
        for left in cluster.list(kind, f"app.kubernetes.io/part-of=firstsight,app.kubernetes.io/instance={release}", namespace):
            name = left["metadata"]["name"]
            if left["metadata"]["labels"]["app.kubernetes.io/component"] in _HOOKS:
                cluster.delete(kind, name, namespace, propagation="Background")
                print(f"removed {kind.kind} {namespace}/{name}")
