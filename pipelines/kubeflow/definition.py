"""The pipeline: links -> triplets, pairs -> plan -> one flat loop over cells -> `finish`, which reports however the run ended."""

import itertools
from typing import Any

from kfp import dsl, kubernetes

from pipelines.kubeflow import components

NAME = "firstsight"
PROFILE_FOLDER = "/etc/firstsight"
"""Where the profile's ConfigMap is mounted; pipelines/profile/profile.py looks there."""
USER = 10001
"""Of the pipelines image; restricted Pod Security wants it said in each pod."""
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
LABELS = {
    "app.kubernetes.io/name": NAME,
    "app.kubernetes.io/part-of": NAME,
    "app.kubernetes.io/component": "launcher",
    "sidecar.istio.io/inject": "false",
}
ANNOTATIONS = {
    "sidecar.istio.io/inject": "false",  # the pod talks to the API server and the store alone
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",  # KFP does not retry a step whose pod was evicted
}


def _as_launcher(task: dsl.PipelineTask, profile: str, tolerations: list[dict[str, str]]) -> None:
    """What every pod of the pipeline is on a cluster: never cached, small, restricted, with the profile's files and credentials.

    kfp.local passes all of it over. A variable would hold there too and win over the shell's, so none is set: the
    profile is found where it is mounted. ConfigMap and Secret are optional, so that the first step can say that they
    are missing; a pod that waits for them would say nothing in Kubeflow's UI.
    """
    task.set_caching_options(False)
    task.set_cpu_request("100m").set_memory_request("256Mi").set_memory_limit("1Gi")
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    kubernetes.use_config_map_as_volume(task, profile, PROFILE_FOLDER, optional=True)
    kubernetes.use_secret_as_env(task, profile, {key: key for key in SECRET_KEYS}, optional=True)
    kubernetes.add_toleration_json(task, tolerations)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in ANNOTATIONS.items():
        kubernetes.add_pod_annotation(task, key, value)


def _steps_of_a_cell(cell: str, given: dict[str, Any], shape: dict[str, Any]) -> list[dsl.PipelineTask]:
    stages = (components.perceptual, components.contrastive, components.posthoc)
    tasks = [*(stage(cell=cell, **given, **shape) for stage in stages), components.evaluate(cell=cell, **given)]
    for earlier, later in itertools.pairwise(tasks):
        later.after(earlier)
    return tasks


@dsl.pipeline(name=NAME, description="Perceptual Initialization for CLIP: see first, then read, then report whether it helped.")
def firstsight(
    profile: str = "firstsight",
    experiment: str = "demo",
    recipe: str = "demo",
    arms: str = "random,perceptual",
    seeds: str = "0",
    pairs: str = "",
    triplets: str = "",
    eval_sets: str = "",
    nodes: int = 0,
    gpus_per_node: int = -1,
    image: str = "",
    queue: str = "",
    resume: str = "auto",
    root: str = "",
    max_reject_fraction: float = 0.01,
    tolerations: list[dict[str, str]] = [],  # noqa: B006 (the compiler reads it, nobody writes to it)
) -> None:
    """Wires the components; the store is the hand-off between them.

    Args:
        profile: Name of the run profile: a ConfigMap of this namespace (and a Secret of the same name) that the chart installs.
        experiment: Name of the experiment; the same name goes on where it was.
        recipe: smoke, demo, paper, paper-3m, or the URI of a YAML file.
        arms: Comma-separated: random, perceptual, permuted, posthoc, judged, instance, shuffled, from:<uri>.
        seeds: Comma-separated whole numbers; every arm is run with each.
        pairs: Source of image-text pairs: URI of a folder with captions, or of WebDataset tars. Empty: the demo's pictures.
        triplets: Source of judged triplets: URI of a folder in the NIGHTS layout. Empty: made from the pairs, judged by FLIP.
        eval_sets: Comma-separated URIs of further evaluation sets, in CLIP_benchmark's layout or made by `trainer stage eval`.
        nodes: Machines of the contrastive job. 0: as the profile says.
        gpus_per_node: GPUs a training job takes on each machine. -1: as the profile says; 0: CPU.
        image: The trainer's image, with tag or digest. Empty: the profile's.
        queue: Queue that admits the jobs, such as a Kueue LocalQueue. Empty: the profile's.
        resume: auto (go on from the last checkpoint), never (begin anew), or the URI of a checkpoint.
        root: Store URI under which everything lies: s3://bucket/prefix. Empty: the profile's.
        max_reject_fraction: More bad samples than this stop staging.
        tolerations: JSON list of tolerations of the steps' own small pods; those of the jobs stand in the profile.
    """
    on_jobs = {"image": image, "queue": queue}
    shape = {"nodes": nodes, "gpus_per_node": gpus_per_node, "resume": resume}
    place = {"root": root, "experiment": experiment}
    sources = {**place, "pairs": pairs, "recipe": recipe, "max_reject_fraction": max_reject_fraction}

    exit_task = components.finish(**place)
    with dsl.ExitHandler(exit_task, name="experiment"):
        linked = components.links(
            profile=profile, arms=arms, seeds=seeds, triplets=triplets, eval_sets=eval_sets, **sources, **shape, **on_jobs
        )
        staged_triplets = components.stage_triplets(triplets=triplets, **sources, **on_jobs).after(linked)
        staged_pairs = components.stage_pairs(**sources, **on_jobs).after(linked)
        staged = {"pairs": staged_pairs.output, "triplets": staged_triplets.output}
        planned = components.plan(arms=arms, seeds=seeds, recipe=recipe, eval_sets=eval_sets, **staged, **place)
        tasks = [exit_task, linked, staged_triplets, staged_pairs, planned]
        with dsl.ParallelFor(planned.output, name="cells", parallelism=1) as cell:
            cells = _steps_of_a_cell(cell, {**place, **on_jobs}, shape)
    for task in (*tasks, *cells):
        _as_launcher(task, profile, tolerations)
    exit_task.set_memory_limit("4Gi")  # it reads every item of every evaluation
