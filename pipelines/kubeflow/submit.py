"""`python -m pipelines submit`: the experiment on a Kubeflow server; waits, streams, ends with the experiment's exit code.

`make pipeline-run KFP_ENDPOINT=https://…` calls it, for people and for CI.
"""

import argparse
import json
import os
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.kubeflow.upload import NAME, add_connection, connect, register
from trainer.errors import InputError, RunError

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Kubeflow

LOST_SECONDS = 600.0
"""How long a lost connection is waited for while the run goes on without us."""
CLOCK_SECONDS = 60.0
"""Between the clocks of server and steps."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `submit`."""
    parser = commands.add_parser("submit", parents=[common], help="run the experiment on a Kubeflow server, and wait for it")
    add_connection(parser)
    parser.add_argument("--profile", default=NAME, help="run profile: a ConfigMap in the runs' namespace (default: %(default)s)")
    parser.add_argument("--experiment", default="", help="its name (default: the recipe's; with --pairs one made from the data)")
    parser.add_argument("--recipe", default="demo", help="smoke, demo, paper, paper-3m, or the URI of a YAML file (default: %(default)s)")
    parser.add_argument("--arms", default="random,perceptual", help="comma-separated arms (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds (default: %(default)s)")
    parser.add_argument("--pairs", default="", help="URI of captioned pictures (default: the demo's)")
    parser.add_argument("--triplets", default="", help="URI of judged triplets (default: made from the pairs, judged by FLIP)")
    parser.add_argument("--eval-sets", default="", help="comma-separated URIs of further evaluation sets (default: none)")
    parser.add_argument("--nodes", type=int, default=0, help="machines of the contrastive job (default: the profile's)")
    parser.add_argument("--gpus-per-node", type=int, default=-1, help="on each machine (default: the profile's)")
    parser.add_argument("--image", default="", help="the trainer's (default: the profile's)")
    parser.add_argument("--queue", default="", help="that admits the jobs (default: the profile's)")
    parser.add_argument("--resume", default="auto", help="auto, never, or the URI of a checkpoint (default: %(default)s)")
    parser.add_argument("--root", default="", help="store URI under which everything lies (default: the profile's)")
    parser.add_argument("--max-reject-fraction", type=float, default=0.01, help="more bad samples stop staging (default: %(default)s)")
    parser.add_argument("--pipelines-image", default="", help="in which the steps run (default: that of the registered pipeline)")
    parser.add_argument("--service-account", default=os.environ.get("KFP_SERVICE_ACCOUNT", ""), help="of the steps (KFP_SERVICE_ACCOUNT)")
    parser.add_argument("--no-wait", action="store_true", help="end once the run is submitted")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end; what happens goes to stderr")
    parser.set_defaults(run=_submit)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run that was submitted.

    Attributes:
        run: its id.
        name: as people see it.
        link: where people see it.
        version: of the pipeline.
        parameters: of the pipeline.
    """

    run: str
    name: str
    link: str
    version: str
    parameters: dict[str, Any]


def _submit(options: argparse.Namespace) -> int:
    from pipelines.kubeflow.follow import Follower

    parameters = check_parameters(options)
    server = connect(options, patience_seconds=30.0)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    submission = submit(server, parameters, image=options.pipelines_image, service_account=options.service_account)
    say(f"run {submission.name} of pipeline version {submission.version}: {submission.link}")
    result: dict[str, Any] = {
        "run_id": submission.run,
        "run": submission.name,
        "link": submission.link,
        "pipeline_version": submission.version,
        "experiment": parameters["experiment"],
        "state": "SUBMITTED",
        "exit_code": 0,
        "failures": [],
    }
    try:
        if not options.no_wait:
            server.patience_seconds = LOST_SECONDS
            run, stopped = Follower(server, submission.run, say).follow()
            result |= judge(run, parameters, stopped)
    except KeyboardInterrupt:
        result |= {"state": "CANCELING", "exit_code": 130, "line": f"not waited for: {submission.link}"}
    except RunError as error:
        raise RunError(f"{error}; the run goes on: {submission.link}") from error
    if result.get("line"):
        print(f"pipelines submit: {result['line']}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    elif result["state"] == "SUCCEEDED":
        _print_report(parameters)
    return int(result["exit_code"])


def check_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's parameters, with all that can be known to be wrong from here.

    Raises:
        InputError: before anything is uploaded.
    """
    from pipelines.local.run import default_experiment
    from pipelines.planning import plan
    from pipelines.planning.arms import parse_arms, parse_seeds
    from pipelines.profile.profile import Overrides
    from trainer.storage import layout

    Overrides(nodes=options.nodes, gpus_per_node=options.gpus_per_node, resume=options.resume)
    for name in ("root", "pairs", "triplets", "recipe"):
        value = getattr(options, name)
        if (name != "recipe" or value.endswith((".yaml", ".yml"))) and value not in ("", "demo") and "://" not in value:
            raise InputError(
                f"--{name} must be a URI such as s3://bucket/prefix, since a cluster does not see this machine's files: {value!r}"
            )
    chosen = parse_arms(options.arms)
    parse_seeds(options.seeds)
    if not options.recipe.endswith((".yaml", ".yml")):  # what lies in the cluster's store may not be readable here
        plan.require_judge(chosen, "" if options.triplets else "FLIP", plan.read_recipe(options.recipe))
    if not 0 <= options.max_reject_fraction <= 1:
        raise InputError(f"--max-reject-fraction must be between 0 and 1, got {options.max_reject_fraction}")
    pairs, triplets = ("" if source == "demo" else source for source in (options.pairs, options.triplets))
    recipe = options.recipe.rpartition("/")[2].removesuffix(".yaml").removesuffix(".yml")
    names = ("profile", "recipe", "arms", "seeds", "eval_sets", "nodes", "gpus_per_node", "image", "queue", "resume", "root")
    return {
        **{name: getattr(options, name) for name in names},
        "experiment": layout.check_name("experiment", options.experiment or default_experiment(recipe, pairs, triplets)),
        "pairs": pairs,
        "triplets": triplets,
        "max_reject_fraction": options.max_reject_fraction,
        "tolerations": [],
    }


def submit(server: "Kubeflow", parameters: dict[str, Any], *, image: str, service_account: str) -> Submission:
    """Upload the pipeline where it is not there yet, and start a run of it.

    Args:
        server: where.
        parameters: of the pipeline.
        image: the pipelines image; empty: that of the version that was registered last.
        service_account: of the steps' pods; empty: the server's default.
    """
    from pipelines.kubeflow.client import NotThere

    try:
        image = image or server.newest_image(NAME)
    except NotThere as error:
        raise InputError(f"{error}: install the chart, which registers one, or name the image with --pipelines-image") from error
    pipeline, version, version_name = register(server, NAME, image)
    experiment = str(parameters["experiment"])
    name = f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    place = server.experiment(experiment)
    run = server.start(name, experiment=place, pipeline=pipeline, version=version, parameters=parameters, service_account=service_account)
    return Submission(run=run, name=name, link=server.link(run), version=version_name, parameters=parameters)


def judge(run: Any, parameters: dict[str, Any], stopped: bool) -> dict[str, Any]:
    """How a run ended: state, exit_code, failures, line. Kubeflow knows no exit codes: they are read from the store.

    Args:
        run: kfp_server_api.V2beta1Run that has ended.
        parameters: the pipeline's.
        stopped: its end was asked for from here.
    """
    from pipelines.kubeflow.follow import was_terminated

    result: dict[str, Any] = {"state": run.state, "exit_code": 1, "failures": [], "line": ""}
    if run.state == "SUCCEEDED":
        return {**result, "exit_code": 0}
    if stopped:
        return {**result, "exit_code": 130, "line": "stopped; submit the same experiment again to go on"}
    if was_terminated(run):
        return {**result, "line": "the run was terminated by somebody; submit the same experiment again to go on"}
    try:
        failures = _failures(run, parameters)
    except (InputError, RunError, OSError) as error:
        why = getattr(run.error, "message", "") or "see the log of its steps"
        return {**result, "line": f"the run ended {run.state} ({why}); its failure.json cannot be read from here: {error}"}
    wrong_input = bool(failures) and all(failure["exit_code"] == 2 for failure in failures)
    lines = [f"{failure['stage']}: {failure['line']}" for failure in failures] or [f"the run ended {run.state}, and no step says why"]
    return {**result, "exit_code": 2 if wrong_input else 1, "failures": failures, "line": "; ".join(lines)}


def _failures(run: Any, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    from pipelines.planning.arms import parse_arms, parse_seeds
    from pipelines.steps import steps
    from trainer.storage import layout

    cells = [layout.cell_name(arm.name, seed) for seed in parse_seeds(parameters["seeds"]) for arm in parse_arms(parameters["arms"])]
    since = run.created_at.timestamp() - CLOCK_SECONDS if run.created_at else 0.0
    return steps.failures(steps.root_of_run(parameters["root"]), parameters["experiment"], cells, since)


def _print_report(parameters: dict[str, Any]) -> None:
    """The report's table where this machine can read the store; the run's page has it anyway."""
    from rich.console import Console

    from pipelines.planning.summary import print_summary
    from pipelines.steps.steps import root_of_run
    from trainer.storage import layout

    try:
        uri = layout.experiment(root_of_run(parameters["root"]), parameters["experiment"])
        print_summary(Console(file=sys.stdout, highlight=False), uri)
    except (InputError, RunError, OSError):
        print("the report is an artifact of the run's last step, and lies in the store under report/index.html")
