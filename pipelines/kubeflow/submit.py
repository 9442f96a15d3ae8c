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
from pipelines.planning.flags import add_request, request_of
from pipelines.planning.request import Request, resolve
from pipelines.profile.profile import read_profile
from pipelines.steps.running import failures, root_of_run
from trainer.errors import InputError, RunError
from trainer.storage import layout

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Kubeflow
    from pipelines.kubeflow.follow import Followed

LOST_SECONDS = 600.0
"""How long a lost connection is waited for while the run goes on without us."""
CLOCK_SECONDS = 60.0
"""Between the clocks of server and steps."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `submit`."""
    parser = commands.add_parser("submit", parents=[common], help="run the experiment on a Kubeflow server, and wait for it")
    add_connection(parser)
    add_request(parser)
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
    from pipelines.kubeflow.follow import RunFollower

    request = resolve(request_of(options), kubeflow=True)
    server = connect(options, retry_seconds=30.0)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    submission = submit(server, request, image=options.pipelines_image, service_account=options.service_account)
    say(f"run {submission.name} of pipeline version {submission.version}: {submission.link}")
    result: dict[str, Any] = {
        "run_id": submission.run,
        "run": submission.name,
        "link": submission.link,
        "pipeline_version": submission.version,
        "experiment": request.experiment,
        "state": "SUBMITTED",
        "exit_code": 0,
        "failures": [],
    }
    try:
        if not options.no_wait:
            server.retry_seconds = LOST_SECONDS
            result |= result_of(RunFollower(server, submission.run, say, noise=options.verbose).follow(), request)
    except KeyboardInterrupt:
        result |= {"state": "CANCELING", "exit_code": 130, "line": f"not waited for: {submission.link}"}
    except RunError as error:
        raise RunError(f"{error}; the run goes on: {submission.link}") from error
    if result.get("line"):
        print(f"pipelines submit: {result['line']}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    elif result["state"] == "SUCCEEDED":
        _print_report(request)
    return int(result["exit_code"])


def submit(server: "Kubeflow", request: Request, *, image: str, service_account: str) -> Submission:
    """Upload the pipeline where it is not there yet, and start a run of it.

    Args:
        server: where.
        request: resolved, as a server can meet it.
        image: the pipelines image; empty: that of the version that was registered last.
        service_account: of the steps' pods; empty: the server's default.
    """
    from pipelines.kubeflow.client import NotThere

    try:
        image = image or server.newest_image(NAME)
    except NotThere as error:
        raise InputError(f"{error}: install the chart, which registers one, or name the image with --pipelines-image") from error
    pipeline, version, version_name = register(server, NAME, image)
    parameters = {"request": json.dumps(request.stored()), **({"profile": request.profile} if request.profile else {})}
    experiment = request.experiment
    name = f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    place = server.experiment(experiment)
    run = server.start(name, experiment=place, pipeline=pipeline, version=version, parameters=parameters, service_account=service_account)
    return Submission(run=run, name=name, link=server.link(run), version=version_name, parameters=parameters)


def result_of(followed: "Followed", request: Request) -> dict[str, Any]:
    """How a run ended: state, exit_code, failures, line. Kubeflow knows no exit codes: they are read from the store.

    Args:
        followed: the run that has ended, and what the logs of its failed steps say.
        request: that it runs.
    """
    from pipelines.kubeflow.follow import was_terminated

    run, stopped = followed.run, followed.stopped
    result: dict[str, Any] = {"state": run.state, "exit_code": 1, "failures": [], "line": ""}
    if run.state == "SUCCEEDED":
        return {**result, "exit_code": 0}
    if stopped:
        return {**result, "exit_code": 130, "line": "stopped; submit the same experiment again to go on"}
    if was_terminated(run):
        return {**result, "line": "the run was terminated by somebody; submit the same experiment again to go on"}
    try:
        failures = _failures(run, request)
    except (InputError, RunError, OSError) as error:
        why = "; ".join(f"{step}: {reason}" for step, reason in followed.reasons.items())
        why = why or getattr(run.error, "message", "") or "see the log of its steps"
        return {**result, "line": f"the run ended {run.state} ({why}); its failure.json cannot be read from here: {error}"}
    wrong_input = bool(failures) and all(failure["exit_code"] == 2 for failure in failures)
    lines = [f"{failure['stage']}: {failure['line']}" for failure in failures] or [f"the run ended {run.state}, and no step says why"]
    return {**result, "exit_code": 2 if wrong_input else 1, "failures": failures, "line": "; ".join(lines)}


def _failures(run: Any, request: Request) -> list[dict[str, Any]]:
    since = run.created_at.timestamp() - CLOCK_SECONDS if run.created_at else 0.0
    return failures(_experiment_uri(request), request.cells, since)


def _experiment_uri(request: Request) -> str:
    """Where the experiment lies, as far as this machine knows: a cluster's profile need not be readable here."""
    return layout.experiment(root_of_run(request.root, read_profile()), request.experiment)


def _print_report(request: Request) -> None:
    """The report's table where this machine can read the store; the run's page has it anyway."""
    from rich.console import Console

    from pipelines.planning.summary import print_summary

    try:
        print_summary(Console(file=sys.stdout, highlight=False), _experiment_uri(request))
    except (InputError, RunError, OSError):
        print("the report is an artifact of the run's last step, and lies in the store under report/index.html")
