"""Every object that may exist under a root: who writes it, who reads it, and what happens if it is damaged.

There are four kinds of damage: the object is missing, is truncated, has a flipped bit, or was replaced by an older version of itself.
The outcome is *healed* (the same command rebuilds or restores it and says so), *refused* (there is no intact copy; the error names
the object and how to recover) or *harmless* (no decision and no number depends on it).
"""

import functools
import re
from dataclasses import dataclass

OUTCOMES = ("healed", "refused", "harmless")


@dataclass(frozen=True, kw_only=True)
class StoredKind:
    """A kind of stored object.

    Attributes:
        name: for people.
        pattern: its place below the root; see `_PARTS`.
        writer: which module writes it.
        reader: which function reads it and finds the damage; empty if no decision depends on it.
        missing: what happens if it is missing: one of OUTCOMES, and how.
        truncated: what happens if it was truncated.
        flipped: what happens if a bit was flipped.
        older: what happens if it was replaced by an older version.
    """

    name: str
    pattern: str
    writer: str
    reader: str
    missing: str
    truncated: str
    flipped: str
    older: str


def kind_of(root: str, uri: str) -> StoredKind | None:
    """The kind of object at `uri`; None if firstsight writes nothing with that name."""
    name = uri.removeprefix(f"{root.rstrip('/')}/")
    return next((kind for kind in KINDS if _regex(kind.pattern).fullmatch(name)), None)


_PARTS = {
    "name": r"[^/]+",
    "number": r"\d+",
    "rest": r".+",
    "anywhere": r"(?:[^/]+/)*",
    "dataset": r"datasets/[^/]+/[^/]+",
    "experiment": r"experiments/[^/]+",
    "stage": r"experiments/[^/]+/(?:towers/[^/]+|[^/]+/(?:contrastive|posthoc))",
    "job": r"experiments/[^/]+(?:/(?:towers/[^/]+|staging/[^/]+|report|[^/]+/(?:contrastive|posthoc|evaluation)))?",
}
"""What the words in braces stand for: `stage` is the folder of a training stage, and `job` any folder to which a job writes its log."""


@functools.cache
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", pattern)
    return re.compile("".join(_PARTS[part] if number % 2 else re.escape(part) for number, part in enumerate(parts)))


def _kind(name: str, pattern: str, writer: str, reader: str, *damage: str) -> StoredKind:
    """A row; one damage given stands for all four."""
    missing, truncated, flipped, older = damage * 4 if len(damage) == 1 else damage
    return StoredKind(
        name=name, pattern=pattern, writer=writer, reader=reader, missing=missing, truncated=truncated, flipped=flipped, older=older
    )


_REMADE = "healed: the stage is rebuilt from its newest intact checkpoint"
_RECORD = "healed: restored from the copy in final/; if that is damaged too, the stage is rebuilt"
_RESTAGED = "healed: staged again from its source; refused, naming the file, if the source no longer gives the same bytes"
_PASSED_OVER = "healed: skipped in favour of the one before it; if none is left, the stage begins again; its folder may be deleted"
_NOT_KEPT = "harmless: the epoch counts as not kept; figures measured from it before are kept"
_SCRATCH = "harmless: never listed; a running writer notices that it is gone; leftovers of a dead writer are removed by the next process"
_LOG = "harmless: for people only"
_CHECKED = "healed: the files that it names are hashed again"
_NEVER = "harmless: written once, so no older version of it exists"

KINDS: tuple[StoredKind, ...] = (
    _kind("write in progress", "{anywhere}.{name}.partial", "trainer.storage.writers", "", _SCRATCH),
    # ------------------------------------------------------------------------------------------------ data sets
    _kind("data set's manifest", "{dataset}/manifest.json", "trainer.staging.writer", "trainer.storage.manifest.read_manifest",
          _RESTAGED, _RESTAGED, _RESTAGED, "refused: the experiment names its identity (in format 1, its checksum) and accepts no other"),
    _kind("data set's plan", "{dataset}/plan.json", "trainer.staging.plans", "trainer.staging.plans.read_plan",
          "healed: planned again from the source while the data set is not sealed; harmless afterwards"),
    _kind("record of a check", "{dataset}/CHECKED.json", "trainer.storage.checked", "trainer.storage.checked.find_damaged", _CHECKED),
    _kind("shard", "{dataset}/{name}.tar", "trainer.staging.slices", "trainer.data.shards", _RESTAGED, _RESTAGED, _RESTAGED, _NEVER),
    _kind("index of a shard", "{dataset}/{name}.index", "trainer.staging.slices", "trainer.storage.samples.read_index",
          _RESTAGED, _RESTAGED, _RESTAGED, _NEVER),
    _kind("record of a slice", "{dataset}/slices/{name}.json", "trainer.staging.slices", "trainer.staging.slices.read_record",
          "healed: the slice is rebuilt while the data set is not sealed; harmless afterwards"),
    _kind("rows of a slice", "{dataset}/rows/{name}.parquet", "trainer.staging.remote.rows", "trainer.staging.remote.rows.read_rows",
          "healed: planned again from the list while the data set is not sealed; harmless afterwards"),
    _kind("rejected rows", "{dataset}/rejects/{name}.jsonl", "trainer.staging.slices", "", _LOG),
    _kind("attempt at a slice", "{dataset}/attempts/{rest}", "trainer.staging.slices", "trainer.staging.slices.find_whole",
          "healed: the slice is rebuilt; leftover attempts are removed when the data set is sealed"),
    _kind("shard of an evaluation set", "{dataset}/test/{name}.tar", "trainer.staging.heldout", "trainer.evaluation.read_sets.read_shard",
          _RESTAGED, _RESTAGED, _RESTAGED, _NEVER),
    _kind("index of an evaluation set's shard", "{dataset}/test/{name}.index", "trainer.staging.heldout",
          "trainer.storage.samples.read_index", _RESTAGED, _RESTAGED, _RESTAGED, _NEVER),
    _kind("shard count of an evaluation set", "{dataset}/test/nshards.txt", "trainer.staging.sealed",
          "trainer.evaluation.read_sets.describe_set", _RESTAGED),
    _kind("text file of an evaluation set", "{dataset}/{name}.txt", "trainer.staging.sealed", "trainer.evaluation.read_sets.describe_set",
          _RESTAGED),
    _kind("source's remembered fingerprint", "datasets/fingerprints/{name}.json", "trainer.staging.sources.listing",
          "trainer.staging.sources.listing.fingerprint", "healed: the source is hashed again"),
    # ------------------------------------------------------------------------------------------------ what was asked for
    _kind("run's record", "runs/{name}.json", "pipelines.planning.runs", "pipelines.planning.runs.read_run",
          "harmless: the run's last step says that there is nothing to report; a new run of the request reports it",
          "refused: the run's last step names it; a new run of the request writes its own record",
          "refused: the run's last step names it; a new run of the request writes its own record", _NEVER),
    _kind("stored request", "{experiment}/requests/{name}.json", "pipelines.planning.request", "pipelines.planning.request.read_request",
          "healed: the first step of a run with the same request rewrites it; until then, a step that reads it refuses it, naming it"),
    _kind("record of a failed cell", "runs/{name}/failed/{name}.json", "pipelines.planning.runs", "pipelines.planning.runs",
          "healed: the cell is tried again in the same run", "healed: the cell is tried again in the same run",
          "healed: the cell is tried again in the same run", _NEVER),
    _kind("record of a step's start", "runs/{name}/started/{name}.json", "pipelines.planning.runs", "",
          "harmless: if it is missing, a step restarted with Kubeflow's Retry skips cells that failed before"),
    _kind("lane's heartbeat", "runs/{name}/alive/{name}.json", "pipelines.planning.runs", "",
          "harmless: it is written again within a minute"),
    _kind("record that a request began a stage", "{experiment}/requests/{name}/begun/{name}.json", "pipelines.steps.cells", "",
          "harmless: if it is missing, `resume: never` takes effect once more"),
    _kind("experiment's plan", "{experiment}/plan.json", "pipelines.planning.writing", "trainer.storage.plans.read_plan",
          "healed: planned again from the request; cells of earlier runs are taken from the configurations of their stages"),
    _kind("declaration", "{experiment}/declared/{name}.json", "pipelines.planning.varied", "pipelines.planning.varied.find_lost",
          "healed: rewritten from the plan; if the plan is gone too, what a request declares counts as declared after the results"),
    _kind("lock of an experiment", "{experiment}/{name}.lock", "pipelines.jobs.lock", "pipelines.jobs.lock.exclusive",
          "healed: a run that finds its lock replaced exits; the next one takes the lock"),
    # ------------------------------------------------------------------------------------------------ staging jobs
    _kind("record of staging", "{experiment}/staging/{name}/sealed.json", "pipelines.steps.sealed", "pipelines.steps.sealed.find_sealed",
          "healed: the staging job reads the source again and finds the data set"),
    _kind("result of a staging job", "{experiment}/staging/{name}/{name}.json", "trainer.__main__", "pipelines.steps.staging.run_staging",
          "healed: the next staging job rewrites it; a dry run treats the data as unstaged"),
    _kind("recipe for a staging job", "{experiment}/staging/{name}/{name}.yaml", "pipelines.steps.staging",
          "trainer.storage.recipes.read_recipe", "healed: rewritten before each staging job"),
    # ------------------------------------------------------------------------------------------------ every job
    _kind("record of a failure", "{job}/failure.json", "trainer.storage.failures", "trainer.storage.failures.read_failure",
          "harmless: how the job failed is then reported as unknown"),
    _kind("job's log", "{job}/log.txt", "pipelines.steps.running", "", _LOG),
    # ------------------------------------------------------------------------------------------------ stages
    _kind("stage's configuration", "{stage}/config.yaml", "pipelines.planning.writing", "trainer.storage.recipes.read_stage",
          "healed: planned again, unless the rest of the folder belongs to another recipe; for a finished stage, restored from final/"),
    _kind("stage's lineage", "{stage}/lineage.json", "trainer.run.records", "trainer.storage.committed.read_beside", _RECORD),
    _kind("stage's metrics by step", "{stage}/progress.jsonl", "trainer.run.metrics", "trainer.storage.committed.read_beside", _RECORD),
    _kind("stage's placement", "{stage}/placement.json", "trainer.run.placing", "trainer.run.placing.settle",
          "healed: values are chosen again: the loss stays the same, the bits may not"),
    _kind("stage's newest attempt", "{stage}/attempt.json", "trainer.storage.fence", "trainer.storage.fence.read_claim",
          "healed: claimed again with a number higher than that of any seal; a writer that is still running is fenced off by its token"),
    _kind("record of a check", "{stage}/CHECKED.json", "trainer.storage.checked", "trainer.storage.checked.find_damaged", _CHECKED),
    _kind("final model's seal", "{stage}/final/COMMITTED.json", "trainer.storage.committed", "trainer.storage.committed.read_final",
          _REMADE, _REMADE, _REMADE, _NEVER),
    _kind("copy of a stage's configuration", "{stage}/final/config.yaml", "trainer.run.checkpoint",
          "trainer.storage.recipes.restore_config",
          "harmless: read only if the stage's own copy is damaged, and trusted only if its checksum matches"),
    _kind("file of a final model", "{stage}/final/{rest}", "trainer.run.checkpoint", "trainer.storage.committed.read_final",
          _REMADE, _REMADE, _REMADE, _REMADE),
    _kind("checkpoint's seal", "{stage}/checkpoints/{name}/COMMITTED.json", "trainer.storage.committed", "trainer.run.starting",
          _PASSED_OVER, _PASSED_OVER, _PASSED_OVER, _NEVER),
    _kind("file of a checkpoint", "{stage}/checkpoints/{name}/{rest}", "trainer.run.checkpoint", "trainer.run.starting", _PASSED_OVER),
    _kind("seal of kept weights", "{stage}/trajectory/{name}/COMMITTED.json", "trainer.storage.committed", "trainer.evaluation.jobs",
          _NOT_KEPT, _NOT_KEPT, _NOT_KEPT, _NEVER),
    _kind("kept weights", "{stage}/trajectory/{name}/{rest}", "trainer.run.checkpoint", "trainer.evaluation.measure", _NOT_KEPT),
    _kind("stacks of a step that hung", "{stage}/hung/{name}/{name}.txt", "trainer.run.loop", "", _LOG),
    _kind("profiler's trace", "{stage}/profile/{name}.json", "trainer.run.health", "", _LOG),
    # ------------------------------------------------------------------------------------------------ evaluation
    _kind("evaluation's configuration", "{experiment}/{name}/evaluation/config.yaml", "pipelines.planning.writing",
          "trainer.storage.recipes.read_config_values", "healed: planned again"),
    _kind("record of a check", "{experiment}/{name}/evaluation/CHECKED.json", "trainer.storage.checked",
          "trainer.storage.checked.find_damaged", _CHECKED),
    _kind("figures", "{experiment}/{name}/evaluation/{name}/{name}.json", "trainer.storage.figures", "trainer.storage.figures.read_figures",
          "healed: measured again"),
    _kind("items of figures", "{experiment}/{name}/evaluation/{name}/{name}.items.npz", "trainer.storage.figures",
          "trainer.storage.arrays.read_arrays", "healed: measured again"),
    # ------------------------------------------------------------------------------------------------ report
    _kind("record of the report", "{experiment}/report/made.json", "trainer.storage.pages", "trainer.storage.pages.read_page",
          "healed: the report is rebuilt"),
    _kind("record of a check", "{experiment}/report/CHECKED.json", "trainer.storage.checked", "trainer.storage.checked.find_damaged",
          _CHECKED),
    _kind("record of a check", "{experiment}/report/{name}/CHECKED.json", "trainer.storage.checked",
          "trainer.storage.checked.find_damaged", _CHECKED),
    _kind("file of a page", "{experiment}/report/{name}/{name}", "trainer.storage.pages", "pipelines.steps.page.is_current",
          "healed: the report is rebuilt"),
    _kind("file of the report", "{experiment}/report/{name}", "trainer.storage.pages", "pipelines.steps.page.is_current",
          "healed: the report is rebuilt"),
)  # fmt: skip
"""An object belongs to the first row whose pattern matches."""
