"""Write the chart's Grafana dashboard (charts/firstsight/dashboards/firstsight.json), which Helm can only ship as a file.

python scripts/dashboard.py [FILE]: without FILE, writes the chart's. The panels are the table `ROWS`; each says why it may be empty.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders import bargauge, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import VisibilityMode
from grafana_foundation_sdk.models.dashboard import AnnotationQuery, DataSourceRef, VariableOption, VariableRefresh, VariableSort

OUTPUT = Path(__file__).parents[1] / "charts/firstsight/dashboards/firstsight.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT, WIDTH = 8, 24
VARIABLES = ("namespace", "experiment", "arm", "point", "seed", "stage")
BY = "namespace, experiment, cell, arm, point, seed, stage"
"""What tells runs apart: a query that leaves one out shows two runs as one line."""
RUN = ", ".join(f'{name}=~"${name}"' for name in VARIABLES)
LEGEND = "{{namespace}} {{experiment}} {{arm}} {{point}} seed {{seed}} {{stage}}"
JOB = ", ".join(f'{"run_namespace" if name == "namespace" else name}=~"${name}"' for name in VARIABLES)
POD = ".+-s[0-9]+-[0-9a-f]{10}-.+"
"""Pods of a job: `<stage>-<arm>-s<seed>-<hash>-…` (pipelines/cluster/names.py)."""

TRAINING = "No training job was scraped in this time range (metrics.podMonitor.enabled), or none matches the variables above."
REAPER = "No reaper was scraped in this time range: it is off (reaper.enabled), or metrics.podMonitor.enabled is false."
KUBE_STATE = "No job pod was Pending in this time range, or Prometheus has no kube-state-metrics."
VOLUME = (
    "The kubelet reports no volume of a bundled store: the store is external, its claim is one of yours (persistence.existingClaim), "
    "or the volume's driver provides no metrics."
)
DCGM = "dcgm-exporter reports no GPU for these jobs: they trained on CPUs, or the exporter is not scraped."


@dataclass(frozen=True)
class Query:
    """PromQL and the legend of its series."""

    expr: str
    legend: str = LEGEND


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: the panel's title.
        about: what it shows; displayed as a tooltip.
        queries: what it draws.
        unit: Grafana's name for the unit.
        least: lower limit of the axis; None: set by the data.
        most: upper limit of the axis; None: set by the data.
        empty: shown in place of data where there are none.
        bars: one bar per series over the whole time range; otherwise lines over time.
    """

    title: str
    about: str
    queries: tuple[Query, ...]
    unit: str = "short"
    least: float | None = 0
    most: float | None = None
    empty: str = TRAINING
    bars: bool = False


def of_run(name: str) -> str:
    """The series of a trainer metric that the variables select."""
    return f"firstsight_train_{name}{{{RUN}}}"


def latest(name: str, by: str = BY, more: str = "") -> str:
    """A trainer gauge, one line per run; `more` follows the selector."""
    return f"max by ({by}) ({of_run(name)}{more})"


def logged(name: str) -> str:
    """A figure of the log lines, which may be 0; a process that has logged none yet shows 0 too."""
    return f"{latest(name)} and {latest('samples_per_second', more=' > 0')}"


def quantile(share: float) -> str:
    """A quantile of the step time."""
    return f"histogram_quantile({share}, sum by (le, {BY}) (rate({of_run('step_seconds_bucket')}[$__rate_interval])))"


def of_gpu(name: str) -> str:
    """A metric of dcgm-exporter; which labels name the pod depends on whether its monitor honours the exporter's."""
    exported = f'{name}{{exported_namespace=~"$namespace", exported_pod=~"{POD}"}}'
    honoured = f'{name}{{namespace=~"$namespace", pod=~"{POD}"}}'
    renamed = (
        f'label_replace(label_replace({exported}, "pod", "$1", "exported_pod", "(.*)"), "namespace", "$1", "exported_namespace", "(.*)")'
    )
    return f"max by (namespace, pod, gpu) ({renamed} or {honoured})"


def of_reaper(name: str) -> str:
    """A metric of the reapers."""
    return f'firstsight_reaper_{name}{{job="firstsight"}}'


def of_volume(name: str) -> str:
    """A metric of the bundled stores' volumes."""
    return f'kubelet_volume_stats_{name}{{persistentvolumeclaim=~".*-minio"}}'


BY_NODE, LEGEND_OF_NODE = f"{BY}, node_rank", f"{LEGEND} node {{{{node_rank}}}}"
BY_POD, LEGEND_OF_POD = "namespace, pod", "{{namespace}} {{pod}}"
GPU = "{{namespace}} {{pod}} GPU {{gpu}}"
CHECKPOINT = (  # for a run that never saved: since its first process began; only for runs that still exist
    f"(max by ({BY}) (max_over_time({of_run('last_checkpoint_timestamp_seconds')}[4h]) > 0)"
    f" or min by ({BY}) (min_over_time({of_run('start_timestamp_seconds')}[4h])))"
    f" and max by ({BY}) ({of_run('start_timestamp_seconds')})"
)
BY_CLAIM, LEGEND_OF_CLAIM = "namespace, persistentvolumeclaim", "{{namespace}} {{persistentvolumeclaim}}"
EACH_JOB = "run_namespace, job_name, experiment, phase"
JOBS = f"count by (run_namespace, experiment, phase) (max by ({EACH_JOB}) (firstsight_job_phase{{{JOB}}}))"
FAILED_RUNS = 'max by (run_namespace, run) (firstsight_run_failed_timestamp_seconds{run_namespace=~"$namespace"} > bool 0)'
FAILED_JOBS = f'max by (run_namespace, job_name) (firstsight_job_phase{{{JOB}, phase="failed"}})'
PENDING = f'max by ({BY_POD}) (kube_pod_status_phase{{namespace=~"$namespace", phase="Pending", pod=~"{POD}"}}) > 0'
GPU_HOURS = f"sum by (namespace, experiment) (increase({of_run('gpu_seconds_total')}[$__range])) / 3600 > 0"
DATA_WAIT = f"rate({of_run('data_wait_seconds_total')}[$__rate_interval]) / rate({of_run('step_seconds_sum')}[$__rate_interval])"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Speed": (
        Panel(title="Throughput", about="Samples per second over all ranks.", queries=(Query(latest("samples_per_second", more=" > 0")),)),
        Panel(
            title="Model FLOPs utilisation", unit="percentunit", about="Counted model FLOP/s divided by the device's peak.",
            queries=(Query(f"avg by ({BY}) ({of_run('mfu_ratio')} > 0)"),),
            empty="Nothing was trained on a GPU whose peak is known; MFU is not defined for CPUs.",
        ),
        Panel(
            title="Step time", unit="s", about="Median and 95th percentile.",
            queries=(Query(quantile(0.5), f"{LEGEND} median"), Query(quantile(0.95), f"{LEGEND} 95 %")),
        ),
        Panel(
            title="Waiting for data", unit="percentunit", most=1, queries=(Query(f"max by ({BY}) ({DATA_WAIT})"),),
            about="Share of the step time, on the worst node. An alert fires above 20 %.",
        ),
        Panel(
            title="Compute time, by node", unit="s", about="Per step. A node far above the others is a straggler.",
            queries=(Query(latest("compute_seconds", BY_NODE, " > 0"), LEGEND_OF_NODE),),
        ),
        Panel(
            title="Communication time, by node", unit="s", queries=(Query(latest("communication_seconds", BY_NODE), LEGEND_OF_NODE),),
            about="Per step: time in which compute waits for other ranks. Communication that overlaps with compute is not counted.",
        ),
    ),
    "Learning": (
        Panel(title="Loss", about="At the last logged step, over all ranks.", queries=(Query(logged("loss")),), least=None),
        Panel(title="Gradient norm", about="Before clipping.", queries=(Query(logged("grad_norm")),)),
        Panel(
            title="Logit scale", about="Exponential of the logit scale; 100 is the limit.", least=None,
            queries=(Query(latest("logit_scale", more=" > 0")),), empty=f"The perceptual stage has no logit scale. {TRAINING}",
        ),
        Panel(title="Learning rate", unit="sci", about="At the last logged step.", queries=(Query(logged("learning_rate")),)),
    ),
    "Health": (
        Panel(
            title="Since the last step", unit="s", about="Rises when a run stalls.",
            queries=(Query(f"time() - {latest('last_step_timestamp_seconds', more=' > 0')}"),),
        ),
        Panel(
            title="Since the last checkpoint", unit="s", about="What would be lost now; before the first save, the time since the start.",
            queries=(Query(f"time() - ({CHECKPOINT})"),),
        ),
        Panel(
            title="Saving a checkpoint", unit="s", about="Time from start to commit, and how long training was stalled for it.",
            queries=(Query(latest("checkpoint_seconds"), f"{LEGEND} save"), Query(latest("checkpoint_stall_seconds"), f"{LEGEND} stall")),
        ),
        Panel(title="Steps", about="The step that the run has reached.", queries=(Query(latest("step", more=" > 0")),)),
        Panel(title="Restarts", about="How often the run resumed from a checkpoint.", queries=(Query(latest("restarts")),)),
        Panel(
            title="Skipped steps", queries=(Query(latest("nonfinite_steps")),),
            about="Their gradient contained NaN or Inf. A run with more than placement.max_nonfinite_steps of them is stopped.",
        ),
    ),
    "Jobs and cost": (
        Panel(
            title="Jobs by phase", about="Suspended: held by a queue. Active: created, starting or running.",
            queries=(Query(JOBS, "{{run_namespace}} {{experiment}} {{phase}}"),),
            empty=f"There was no job in this time range, or no reaper was scraped that would report it. {REAPER}",
        ),
        Panel(
            title="Failed runs", about="Runs in Kubeflow, and jobs, that failed and have not been cleaned up yet.",
            queries=(Query(FAILED_RUNS, "{{run_namespace}} run {{run}}"), Query(FAILED_JOBS, "{{run_namespace}} job {{job_name}}")),
            empty=f"Nothing failed in this time range, or no reaper was scraped that would report it. {REAPER}",
        ),
        Panel(
            title="Pending pods", about="Job pods that are not running yet: no node has room, or the image is being pulled.",
            queries=(Query(PENDING, LEGEND_OF_POD),), empty=KUBE_STATE,
        ),
        Panel(
            title="GPU-hours by experiment", unit="h", bars=True, queries=(Query(GPU_HOURS, "{{namespace}} {{experiment}}"),),
            about="GPU-hours held by training in this time range; staging and evaluation are not included.",
            empty="Training held no GPU in this time range; CPU training uses no GPU-hours.",
        ),
    ),
    "Reaper": (
        Panel(
            title="Reaper up", most=1, about="Whether it responds to Prometheus. While it is down, terminated runs keep their GPUs.",
            queries=(Query(f'max by ({BY_POD}) (up{{job="firstsight", container="reaper"}})', LEGEND_OF_POD),), empty=REAPER,
        ),
        Panel(title="Jobs watched", about="Jobs that it watches.", queries=(Query(of_reaper("jobs"), LEGEND_OF_POD),), empty=REAPER),
        Panel(
            title="Freed", about="Holds removed from jobs, and jobs deleted with their last hold, per five minutes.", empty=REAPER,
            queries=(
                Query(f"increase({of_reaper('released_total')}[5m])", f"{LEGEND_OF_POD} holds"),
                Query(f"increase({of_reaper('deleted_jobs_total')}[5m])", f"{LEGEND_OF_POD} jobs"),
            ),
        ),
        Panel(
            title="Reaper's errors", about="Failed reads and actions per five minutes.", empty=REAPER,
            queries=(Query(f"increase({of_reaper('errors_total')}[5m])", LEGEND_OF_POD),),
        ),
    ),
    "Bundled store": (
        Panel(
            title="Volume in use", unit="percentunit", most=1, empty=VOLUME,
            about="Used share of the bundled store's volume. An external store has its own monitoring.",
            queries=(Query(f"max by ({BY_CLAIM}) ({of_volume('used_bytes')} / {of_volume('capacity_bytes')})", LEGEND_OF_CLAIM),),
        ),
        Panel(
            title="Volume left", unit="bytes", about="Free space on the bundled store's volume.", empty=VOLUME,
            queries=(Query(f"min by ({BY_CLAIM}) ({of_volume('available_bytes')})", LEGEND_OF_CLAIM),),
        ),
    ),
    "GPUs, where dcgm-exporter runs": (
        Panel(
            title="GPU utilisation", unit="percent", most=100, about="Share of time during which any kernel was running.",
            queries=(Query(of_gpu("DCGM_FI_DEV_GPU_UTIL"), GPU),), empty=DCGM,
        ),
        Panel(
            title="Tensor cores", unit="percentunit", most=1, queries=(Query(of_gpu("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"), GPU),),
            about="Share of cycles in which tensor cores were active; the closest to MFU that the device itself measures.", empty=DCGM,
        ),
        Panel(
            title="GPU memory", unit="mbytes", about="In use; DCGM counts in MiB.",
            queries=(Query(of_gpu("DCGM_FI_DEV_FB_USED"), GPU),), empty=DCGM,
        ),
    ),
}  # fmt: skip


def main(output: Path) -> None:
    """Write the dashboard to `output`."""
    built = (
        dashboard.Dashboard("firstsight")
        .uid("firstsight")
        .description("Perceptual Initialization for CLIP: training jobs. Generated by scripts/dashboard.py (make generate): edit that.")
        .tags(["firstsight"])
        .editable()
        .refresh("30s")
        .timezone("browser")
        .time("now-1h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for position, name in enumerate(VARIABLES):
        built.with_variable(_variable(name, VARIABLES[:position]))
    for name, colour, metric in (("checkpoint", "blue", "last_checkpoint"), ("restart", "red", "start")):
        changed = f"changes({of_run(f'{metric}_timestamp_seconds')}[1m])"
        built.annotation(_Marks(name=name, icon_color=colour, datasource=SOURCE, expr=f"max by ({BY}) ({changed}) > 0"))
    numbers = itertools.count(1)
    for title, panels in ROWS.items():
        built.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            built.with_panel(_panel(panel, WIDTH // (4 if len(panels) == 4 else min(len(panels), 3))).id(next(numbers)))
    output.write_text(JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n")


def _variable(name: str, before: tuple[str, ...]) -> dashboard.QueryVariable:
    """A variable that offers the values left by the variables before it."""
    chosen = ", ".join(f'{other}=~"${other}"' for other in before)
    query = f"label_values(firstsight_train_steps_total{f'{{{chosen}}}' if chosen else ''}, {name})"
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC if name == "seed" else VariableSort.ALPHABETICAL_ASC)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


class _Marks(AnnotationQuery):
    """Marks on every panel, with the fields of Prometheus annotations that the SDK leaves out."""

    def build(self) -> AnnotationQuery:
        """Return itself: it is its own builder."""
        return self

    def to_json(self) -> dict[str, object]:
        """As Grafana reads it."""
        return {**super().to_json(), "step": "30s", "titleFormat": self.name, "textFormat": LEGEND}


def _panel(panel: Panel, width: int) -> timeseries.Panel | bargauge.Panel:
    built = bargauge.Panel() if panel.bars else timeseries.Panel().line_width(1).fill_opacity(0).show_points(VisibilityMode.NEVER)
    built.title(panel.title).description(panel.about).datasource(SOURCE).span(width).height(HEIGHT).unit(panel.unit).no_value(panel.empty)
    if panel.least is not None:
        built.min(panel.least)
    if panel.most is not None:
        built.max(panel.most)
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().datasource(SOURCE).ref_id(chr(ord("A") + number)).expr(query.expr).legend_format(query.legend)
        built.with_target(target.instant() if panel.bars else target.range())
    return built


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2] or [OUTPUT]))
