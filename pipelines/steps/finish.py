"""The steps that end a run: `report`, after all lanes, and `finish`, however the run ended."""

from pipelines.planning.request import root_given
from pipelines.planning.runs import read_run
from pipelines.profile.profile import read_profile
from pipelines.steps import page
from pipelines.steps.notes import note
from pipelines.steps.planning import lanes_of
from pipelines.steps.running import Scene, open_scene, root_of_run, step
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import join, layout, pages
from trainer.storage.plans import read_plan

SUCCESS = ("COMPLETE", "SUCCEEDED")
"""States of a run that succeeded: Kubeflow's word and kfp.local's."""


@step
def report(*, request: str) -> str:
    """Bring the report's page up to date. Returns the folder of the current page.

    Args:
        request: URI of the stored request.
    """
    scene = open_scene(request)
    lanes_of(scene, "report")
    page.publish(scene)
    return pages.folder_of(scene.experiment)


@step
def finish(*, run: str, request: str, root: str, state: str) -> tuple[str, str]:
    """Release what the run holds; if the run failed or the page is incomplete, report the cells that finished.

    An exit task can take no output of another task, so it finds the stored request by the run's id.

    Args:
        run: the run's id.
        request: the pipeline's parameter of that name, which may name the root.
        root: the pipeline's parameter of that name.
        state: how the run ended.

    Returns:
        One line that says how the run ended, with the page's address; and the folder of the page, empty if the step `report`
        has already shown it or there is no page.
    """
    place = root_of_run(root_given(request, root), read_profile())
    stored = read_run(place, run)
    if stored is None:
        return _said(f"the run ended as {state} before its request was accepted: nothing to report"), ""
    scene = open_scene(stored)
    _release(scene)
    if not _is_planned(scene):
        return _said(f"the run ended as {state} before it was planned: nothing to report"), ""
    made = page.publish(scene)
    address = join(layout.report(scene.experiment), "index.html")
    if state in SUCCESS and not made:
        return _said(f"done; the report: {address}"), ""
    return _said(f"the run ended as {state}; the report of the cells that finished: {address}"), pages.folder_of(scene.experiment)


def _is_planned(scene: Scene) -> bool:
    try:
        return read_plan(scene.experiment) is not None
    except Corrupt:
        lanes_of(scene, "finish")
        return True


def _said(line: str) -> str:
    print(f"finish: {line}", flush=True)
    return line


def _release(scene: Scene) -> None:
    """Release every job of the experiment that this run still holds; a failure here must not keep the report from being written."""
    if scene.profile.backend == "local":
        return
    from pipelines.jobs.leftovers import release_all  # here: this machine needs no client of Kubernetes

    try:
        for line in release_all(scene.profile.jobs.namespace, scene.request.experiment):
            note("finish", line)
    except (InputError, RunError) as error:
        note("finish", f"jobs that this run holds could not be released; the reaper will release them: {error}")
