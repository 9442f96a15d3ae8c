"""The first step: refuse at once what cannot be meant, and say where to look while the run goes on.

Kubeflow's UI shows the log of a launcher and, at the end, its artifacts; what a person wants to watch lies elsewhere.
"""

import os
from pathlib import Path

from pipelines.cluster.names import DOMAIN
from pipelines.jobs.base import Outcome
from pipelines.jobs.shapes import by_backend, require_backend
from pipelines.jobs.shapes.indexed import JOB
from pipelines.profile.profile import Overrides, Profile, read_profile
from pipelines.steps.steps import FAILURE, record_failure, root_of_run, step
from trainer.config import require
from trainer.errors import InputError
from trainer.storage import join, layout, open_store

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
POD_VARIABLE = "KFP_POD_NAME"


@step
def check_and_link(
    *,
    profile: str,
    experiment: str,
    recipe: str,
    arms: str,
    seeds: str,
    pairs: str,
    triplets: str,
    eval_sets: str,
    nodes: int,
    gpus_per_node: int,
    image: str,
    queue: str,
    resume: str,
    root: str,
    max_reject_fraction: float,
) -> str:
    """Check the parameters of a run (see pipelines/kubeflow/definition.py); a page of links as Markdown.

    Raises:
        InputError: what a person has to mend first; failure.json in the experiment's folder says it too.
    """
    known = read_profile()
    _require_profile(profile, known)
    uri = layout.experiment(root_of_run(root), experiment)
    open_store(uri).delete(join(uri, FAILURE))
    try:
        Overrides(nodes=nodes, gpus_per_node=gpus_per_node, image=image, queue=queue, resume=resume)
        require("max_reject_fraction", max_reject_fraction, "between 0 and 1", 0 <= max_reject_fraction <= 1)
        cells = _cells(arms, seeds, recipe, triplets)
    except InputError as error:
        record_failure(uri, "links", Outcome(exit_code=error.exit_code, line=str(error)))
        raise
    namespace = known.jobs.namespace or (NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default")
    page = _page(known, uri, experiment, namespace, cells)
    print(page, flush=True)  # the UI shows a step's log at once, its artifacts when it has ended
    return page


def _require_profile(name: str, profile: Profile) -> None:
    """ConfigMap and Secret are mounted where there are some; a pod without them is told so here."""
    if os.environ.get(POD_VARIABLE) and profile == Profile():
        raise InputError(f"profile: there is no ConfigMap {name!r} with profile.yaml in this namespace; `helm install` makes one")
    require_backend(profile.backend)


def _cells(arms: str, seeds: str, recipe: str, triplets: str) -> list[str]:
    """The names of the cells asked for, with all that can be known to be wrong before anything is staged."""
    from pipelines.planning import plan  # here: reading YAML into configurations takes longer than all else of this step
    from pipelines.planning.arms import parse_arms, parse_seeds

    chosen = parse_arms(arms)
    plan.require_judge(chosen, "" if triplets else "FLIP", plan.read_recipe(recipe))
    return [layout.cell_name(arm.name, seed) for seed in parse_seeds(seeds) for arm in chosen]


def _page(profile: Profile, uri: str, experiment: str, namespace: str, cells: list[str]) -> str:
    links = [
        f"- [{what}]({address.format(experiment=experiment, namespace=namespace)})"
        for what, address in (
            ("Dashboard", profile.links.dashboard),
            ("Bucket", profile.links.bucket),
            ("Kubeflow", profile.links.kubeflow),
        )
        if address
    ]
    parts = [f"# {experiment}", f"{len(cells)} cells, one after another: {', '.join(f'`{cell}`' for cell in cells)}"]
    parts += ["\n".join([*links, f"- everything: `{uri}`", f"- the report, at the end: `{join(layout.report(uri), 'index.html')}`"])]
    if profile.backend != "local":
        resources = f"{by_backend()[profile.backend].kind.plural},{JOB.plural}"
        parts += _cluster_lines(resources, experiment, namespace)
    return "\n\n".join(parts) + "\n"


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
        "\n".join(["```sh", *commands, "```"]),
        "The log of each launcher is that of its job's first node. *Terminate* frees the GPUs; *Retry*, or a new run of the same "
        "experiment, goes on from the last checkpoint.",
    ]
