"""Scan the rendered chart with checkov and kube-score, and hold what they find against the reasons below: `make chart-scan`.

    python scripts/chart_scan.py CHECKOV        scan; exit 1 if a finding has no reason, or a reason no finding
    python scripts/chart_scan.py --table        write the reasons into docs/SECURITY.md (`make generate`)

What is scanned is the chart with every switch on and images by digest, and a pod of each kind of job that a launcher makes.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts import pods_table
from scripts.marked import rewrite

Findings = dict[str, set[str]]
BEGIN, END = "<!-- written by scripts/chart_scan.py -->\n", "<!-- end of what was scanned -->\n"
HOOKS = ("Job bucket", "Job uninstall", "Job unregister", "Job upload")
TESTS = ("Pod check-firstsight-runs", "Pod check-reaper", "Pod check-v2-runs")
JOBS = ("Pod evaluation", "Pod staging-that-does-not", "Pod staging-that-fetches", "Pod training")
CHART = ("Deployment minio", "Deployment reaper", *HOOKS, *TESTS)
NAMES = {
    frozenset(HOOKS): "hooks",
    frozenset(TESTS): "tests",
    frozenset(JOBS): "jobs",
    frozenset((*TESTS, *JOBS)): "tests and jobs",
    frozenset(("Deployment minio", "Job bucket", *TESTS[::2], *JOBS)): "the store, the bucket hook, tests of runs, jobs",
    frozenset(("Deployment reaper", "Job uninstall", *TESTS)): "the reaper, the uninstall hook, tests",
    frozenset(("Deployment minio", *JOBS)): "the store, jobs",
    frozenset(CHART): "every pod of the chart",
    frozenset((*CHART, *JOBS)): "every pod",
}
"""What groups of objects are called on the page."""
EXPLAINED: dict[str, tuple[tuple[str, ...], str]] = {
    "checkov CKV_K8S_11": (
        (*CHART, *JOBS),
        "no CPU limits: requests divide the CPU of a full node, and limits would only slow pods down on other nodes; memory is limited",
    ),
    "checkov CKV_K8S_35": (
        ("Deployment minio", "Job bucket", "Pod check-firstsight-runs", "Pod check-v2-runs", *JOBS),
        "keys are passed in the environment, where S3 clients read them; each pod runs one program, which never prints its environment. "
        "With workload identity there are no keys",
    ),
    "checkov CKV_K8S_38": (
        ("Deployment reaper", "Job uninstall", "Pod check-firstsight-runs", "Pod check-reaper", "Pod check-v2-runs"),
        "these pods query the API server; the table above lists their accounts' rights",
    ),
    "checkov CKV_K8S_8": (
        (*TESTS, *JOBS),
        "no liveness probe: these pods end by themselves, and the watchdog ends a trainer that hangs",
    ),
    "checkov CKV_K8S_9": ((*TESTS, *JOBS), "no readiness probe: no Service sends traffic to these pods"),
    "kube-score container-ephemeral-storage-request-and-limit": (
        ("Deployment minio", *JOBS),
        "the store writes to its volume, and a change would restart it at an upgrade; jobs have limits, except in a queue, "
        "as here: a queue admits only resources that its quotas name",
    ),
    "kube-score container-image-pull-policy": (
        (*CHART, *JOBS),
        "images need not be pulled at each start: different content has a different tag, and a digest is unique. "
        "`images.pullPolicy: Always` is for nodes whose other tenants must not use what was pulled",
    ),
    "kube-score container-resources": ((*CHART, *JOBS), "as checkov's CKV_K8S_11"),
    "kube-score deployment-replicas": (("Deployment minio",), "one server on one volume: the bundled store is only for trying things out"),
    "kube-score deployment-strategy": (("Deployment minio",), "Recreate: two servers must not open one volume"),
    "kube-score networkpolicy-targets-pod": (("NetworkPolicy steps",), "Kubeflow creates the pods that the policy selects"),
    "kube-score pod-probes-identical": (
        ("Deployment reaper",),
        "both probes check whether the reaper's watches are alive, with different timeouts; only Prometheus connects to the pod",
    ),
}
"""By the scanner and its rule: where it finds something, and why that stays."""


def scanned(objects: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The chart's objects, and one pod of each kind of job."""
    objects = list(objects)
    yield from objects
    jobs = {pod.kind: pod for pod in pods_table.pods(objects) if pod.kind in pods_table.STAGES}
    for kind, pod in jobs.items():
        metadata = {"name": kind.replace(" ", "-"), "namespace": pod.namespace, "labels": dict(pod.labels)}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"restartPolicy": "Never", **pod.spec}}


def checkov(program: str, file: Path) -> Findings:
    """What checkov finds."""
    command = [program, "-f", str(file), "--framework", "kubernetes", "--compact", "--quiet", "--skip-download", "-o", "json"]
    answer = _json(command)
    found: Findings = {}
    for one in (answer[0] if isinstance(answer, list) else answer)["results"]["failed_checks"]:
        kind, _, name = one["resource"].split(".", 2)
        found.setdefault(f"checkov {one['check_id']}", set()).add(_short(kind, name))
    return found


def kube_score(program: Path | str, file: Path) -> Findings:
    """What kube-score finds below its best grade."""
    found: Findings = {}
    for one in _json([str(program), "score", "--output-format", "json", str(file)]):
        for check in one["checks"]:
            if not check["skipped"] and check["grade"] < 10:
                name = _short(one["type_meta"]["kind"], one["object_meta"]["name"])
                found.setdefault(f"kube-score {check['check']['id']}", set()).add(name)
    return found


def _json(command: list[str]) -> Any:
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise SystemExit(f"chart-scan: {command[0]} ended with {done.returncode}: {done.stderr.strip()[-500:]}") from None


def _short(kind: str, name: str) -> str:
    return f"{kind} {name.removeprefix(f'{pods_table.RELEASE}-firstsight-')}"


def unexplained(found: Findings) -> list[str]:
    """A line for each finding without a reason, and for each reason without its finding."""
    lines = []
    for rule in sorted(set(found) | set(EXPLAINED)):
        now, before = found.get(rule, set()), set(EXPLAINED.get(rule, ((), ""))[0])
        lines += [f"{rule}: {name} has no reason in scripts/chart_scan.py" for name in sorted(now - before)]
        lines += [f"{rule}: not found any more at {name}; take it out of scripts/chart_scan.py" for name in sorted(before - now)]
    return lines


def table() -> str:
    """The reasons."""
    lines = ["| finding | where | why it stays |", "|---|---|---|"]
    for rule, (where, why) in EXPLAINED.items():
        lines.append(f"| {rule} | {NAMES.get(frozenset(where), ', '.join(where))} | {why} |")
    return "\n".join([*lines, ""])


def page(current: str) -> str:
    """The page with the table rewritten."""
    return rewrite(current, BEGIN, END, table())


def _main(argument: str) -> int:
    if argument == "--table":
        pods_table.PAGE.write_text(page(pods_table.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    from tests.cluster import programs

    objects = pods_table.rendered(programs.program("helm"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chart.yaml"
        file.write_text(yaml.safe_dump_all(scanned(objects)), encoding="utf-8")
        found = checkov(argument, file) | kube_score(programs.program("kube-score"), file)
    lines = unexplained(found)
    print(*lines, sep="\n") if lines else print(f"chart-scan: {len(found)} kinds of finding, each explained in {pods_table.PAGE.name}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
