"""The series of recorded.json, and what queries make of them: in promtool, whose clock begins at 0, and as a real Prometheus loads them.

What no process here exports (GPUs, pods, volumes) is added in the form of its exporter, at the same times.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent / "recorded.json"
POD = "contrastive-random-s0-0123456789-worker-0"
_RUN = f'namespace="ml", pod="{POD}", experiment="on-gpus", arm="a", point="", seed="0", stage="contrastive"'
_DCGM = f'exported_namespace="ml", exported_pod="{POD}", exported_container="pytorch", namespace="gpu", pod="dcgm-x7k2p"'
OTHERS = {
    f'DCGM_FI_DEV_GPU_UTIL{{gpu="0", {_DCGM}}}': 97.0,
    f'DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{gpu="0", {_DCGM}}}': 0.41,
    f'DCGM_FI_DEV_FB_USED{{gpu="0", {_DCGM}}}': 61_000.0,
    f'kube_pod_status_phase{{namespace="ml", pod="{POD[:-1]}1", phase="Pending"}}': 1.0,
    'kubelet_volume_stats_used_bytes{namespace="ml", persistentvolumeclaim="fs-firstsight-minio"}': 6e10,
    'kubelet_volume_stats_available_bytes{namespace="ml", persistentvolumeclaim="fs-firstsight-minio"}': 4e10,
    'kubelet_volume_stats_capacity_bytes{namespace="ml", persistentvolumeclaim="fs-firstsight-minio"}': 1e11,
    f'firstsight_train_gpu_seconds_total{{{_RUN}}}': None,
    f'firstsight_train_mfu_ratio{{{_RUN}}}': 0.3,
}  # fmt: skip
"""Series by what they are at all times; None: counts two a second."""


@dataclass(frozen=True)
class Recording:
    """Series as promtool's rule tests take them, and how far their samples are apart."""

    seconds: int
    ticks: int
    series: list[dict[str, str]]

    @property
    def end(self) -> int:
        """Seconds from the first sample to the last."""
        return self.seconds * (self.ticks - 1)

    def with_others(self) -> "Recording":
        """With what other exporters would add."""
        more = self.ticks - 1
        added = [(name, f"0+{2 * self.seconds}x{more}" if value is None else f"{value}+0x{more}") for name, value in OTHERS.items()]
        return Recording(self.seconds, self.ticks, [*self.series, *({"series": name, "values": values} for name, values in added)])

    def openmetrics(self, begin: float) -> str:
        """As text with times, for `promtool tsdb create-blocks-from openmetrics`; the record began at `begin`."""
        families: dict[str, list[str]] = {}
        for one in self.series:
            name = one["series"].partition("{")[0]
            for tick, value in enumerate(spread(one["values"])):
                if value is not None:
                    shown = value + begin if name.endswith("_timestamp_seconds") and value else value
                    families.setdefault(name, []).append(f"{one['series']} {shown!r} {begin + tick * self.seconds:.0f}")
        return "".join(f"# TYPE {name} unknown\n" + "\n".join(lines) + "\n" for name, lines in sorted(families.items())) + "# EOF\n"


def load() -> Recording:
    """What tests/chart/record.py wrote."""
    return Recording(**json.loads(FILE.read_text()))


def spread(values: str) -> Iterator[float | None]:
    """The samples that promtool's short form stands for."""
    for part in values.split():
        if part.startswith("_"):
            yield from [None] * int(part[2:] or 1)
        else:
            value, _, times = part.partition("+0x")
            yield from [float(value)] * (int(times or 0) + 1)


def answers(
    promtool: Path, recording: Recording, expressions: Sequence[str], folder: Path, rules: Sequence[Path] = ()
) -> dict[str, list[dict[str, str]]]:
    """The labels of every series that each expression gives at some time, asked every ten seconds.

    promtool says what an expression gave only where it expected something else, so nothing is expected of any.
    """
    moments = [*range(0, recording.end, 10), recording.end]
    tests = [{"expr": expression, "eval_time": f"{moment}s", "exp_samples": []} for expression in expressions for moment in moments]
    every = f"{recording.seconds}s"
    group = {"interval": every, "input_series": recording.series, "promql_expr_test": tests}
    file = folder / "expressions.yaml"
    file.write_text(json.dumps({"rule_files": [str(rule) for rule in rules], "evaluation_interval": every, "tests": [group]}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    said = done.stdout + done.stderr
    found: dict[str, list[dict[str, str]]] = {expression: [] for expression in expressions}
    for expression, got in re.findall(r'expr: (".*"), time: \S+\n\s+exp: nil\n\s+got: (.*)', said):
        for labels in re.findall(r"\{([^}]*)\}", got):
            series = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            if series not in found[json.loads(expression)]:
                found[json.loads(expression)].append(series)
    assert not re.search(r"time: \S+, err: |^Processing.*error|could not", said), said
    return found
