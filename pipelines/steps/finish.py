"""The last step, `finish`: it runs however the run ended, lets go of what the run holds, and reports the cells that finished."""

from pipelines.jobs.base import JobSpec
from pipelines.planning.cells import read_plan
from pipelines.planning.request import root_given
from pipelines.planning.runs import read_run
from pipelines.profile.profile import read_profile
from pipelines.steps import page
from pipelines.steps.notes import note
from pipelines.steps.running import Scene, open_scene, recorded, root_of_run, run_job, step
from trainer.errors import InputError, RunError
from trainer.storage import join, layout


@step
def finish(*, run: str, request: str, root: str, state: str) -> str:
    """Release what the run holds, then report the cells that finished.

    An exit task can take no output of another task, so it finds the stored request by the run's id.

    Args:
        run: the run's id.
        request: the pipeline's parameter of that name, which may name the root.
        root: the pipeline's parameter of that name.
        state: how the run ended.

    Returns:
        The page's URI; empty where there is nothing to report.
    """
    place = root_of_run(root_given(request, root), read_profile())
    stored = read_run(place, run)
    if stored is None:
        print(f"finish: the run ended {state} before its request was accepted: nothing to report", flush=True)
        return ""
    scene = open_scene(stored)
    _release(scene)
    folder = layout.report(scene.experiment)
    with recorded(folder, "report"):
        if read_plan(scene.experiment) is None:
            print(f"finish: the run ended {state} before it was planned: nothing to report", flush=True)
            return ""
        inputs = page.inputs_of(scene.experiment)
        if page.is_current(scene.experiment, inputs):
            note("report", "made before", detail=True)
            return join(folder, "index.html")
        # Always in place: it needs no torch, and the jobs' machines may be gone.
        run_job(scene, JobSpec(name="report", arguments=("report", "--experiment", scene.experiment), folder=folder), attempts=1)
        page.record(scene.experiment, inputs)
        return join(folder, "index.html")


def _release(scene: Scene) -> None:
    """Let go of every job of the experiment that this run still holds; a failure here must not keep the report from being written."""
    if scene.profile.backend == "local":
        return
    from pipelines.jobs.leftovers import release_all  # here: this machine needs no client of Kubernetes

    try:
        for line in release_all(scene.profile.jobs.namespace, scene.request.experiment):
            note("finish", line)
    except (InputError, RunError) as error:
        note("finish", f"jobs that this run holds could not be let go of, the reaper will: {error}")
