"""The pipeline: links -> triplets, pairs -> plan -> one flat loop over lanes -> report; `finish` always runs last, however the run ended.

The loop has no parallelism limit: with one, Kubeflow's Retry hangs forever. The lanes' steps decide how many cells run at once
(pipelines/steps/lanes.py). The lanes' steps keep their inputs and sources short, since they are repeated in six Workflow nodes per lane.
"""

import inspect
import itertools
from typing import Any

from kfp import dsl, kubernetes

from pipelines.kubeflow import components
from pipelines.kubeflow.form import GUIDE, NAMES, PROFILE, described
from pipelines.kubeflow.links_component import links

NAME = "firstsight"
PROFILE_FOLDER = "/etc/firstsight"
"""Where the profile's ConfigMap is mounted; pipelines/profile/profile.py looks there."""
USER = 10001
"""User ID of the pipelines image; restricted Pod Security requires it to be set in each pod."""
SCRATCH = "4Gi"
"""Size limit of /tmp, where all that a step writes goes. kfp-kubernetes can neither make the root read-only nor limit ephemeral storage."""
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
LABELS = {
    "app.kubernetes.io/part-of": NAME,
    "app.kubernetes.io/component": "launcher",
    "sidecar.istio.io/inject": "false",  # the pod talks only to the API server and the store
}
ANNOTATIONS = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",  # KFP does not retry a step whose pod was evicted
}


def _as_launcher(task: dsl.PipelineTask, profile: str, tolerations: list[dict[str, str]]) -> None:
    """Configure a task like every pod of the pipeline: never cached, small, restricted, with the profile's files and credentials.

    kfp.local ignores all of this. An environment variable would apply there too and override the shell's, so none is set: the
    profile is found where it is mounted. ConfigMap and Secret are optional, so that the first step can say that they
    are missing; a pod that waits for them would say nothing in Kubeflow's UI.
    """
    task.set_caching_options(False)
    task.set_cpu_request("100m").set_memory_request("256Mi").set_memory_limit("1Gi")
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.empty_dir_mount(task, "scratch", "/tmp", size_limit=SCRATCH)
    kubernetes.use_config_map_as_volume(task, profile, PROFILE_FOLDER, optional=True)
    kubernetes.use_secret_as_env(task, profile, {key: key for key in SECRET_KEYS}, optional=True)
    kubernetes.add_toleration_json(task, tolerations)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in ANNOTATIONS.items():
        kubernetes.add_pod_annotation(task, key, value)


def _parameters() -> list[inspect.Parameter]:
    """The pipeline's parameters: those of a request as text (empty if not given), and what KFP needs to create the steps' pods."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    defaults: dict[str, tuple[Any, Any]] = {name: ("", str) for name in NAMES}
    defaults |= {"profile": (PROFILE, str), "tolerations": ([], list[dict[str, str]])}
    return [inspect.Parameter(NAMES[name], kind, default=value, annotation=hint) for name, (value, hint) in defaults.items()]


def _documented() -> str:
    """The pipeline's docstring, from which Kubeflow takes the description of each parameter."""
    lines = [f"    {name}: {text}" for name, text in described().items()]
    return "\n".join(["Wires the components; the store is the hand-off between them.", "", "Args:", *lines])


def _steps_of_a_lane(request: str, lane: str) -> list[dsl.PipelineTask]:
    stages = (components.perceptual, components.contrastive, components.posthoc, components.evaluate)
    tasks = [stage(request=request, lane=lane) for stage in stages]
    for earlier, later in itertools.pairwise(tasks):
        later.after(earlier)
    return tasks


def _wire(*values: Any) -> None:
    given = dict(zip(NAMES, values, strict=True))
    profile, tolerations, run = given["profile"], given.pop("tolerations"), dsl.PIPELINE_JOB_ID_PLACEHOLDER

    exit_task = components.finish(run=run, request=given["request"])
    with dsl.ExitHandler(exit_task, name="experiment"):
        linked = links(run=run, **given)
        request = linked.outputs["Output"]
        staged_triplets = components.stage_triplets(request=request)
        staged_pairs = components.stage_pairs(request=request)
        planned = components.plan(request=request, pairs=staged_pairs.output, triplets=staged_triplets.output)
        with dsl.ParallelFor(planned.outputs["Output"], name="lanes") as lane:
            steps = _steps_of_a_lane(request, lane)
        report = components.report(request=request).after(steps[-1])
    for task in (exit_task, linked, staged_triplets, staged_pairs, planned, *steps, report):
        _as_launcher(task, profile, tolerations)
    for task in (steps[-1], report, exit_task):
        task.set_memory_limit("4Gi")  # they build the page, which reads every item of every evaluation


_wire.__signature__ = inspect.Signature(_parameters(), return_annotation=None)  # type: ignore[attr-defined]
_wire.__doc__ = _documented()
firstsight = dsl.pipeline(name=NAME, description=GUIDE)(_wire)
