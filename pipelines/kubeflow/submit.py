"""`python -m pipelines submit`: the experiment on a Kubeflow server; waits, streams, ends with the experiment's exit code.

`make pipeline-run KFP_ENDPOINT=https://…` calls it for people. Make turns every failure into its own 2, so CI calls it directly.
"""

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.kubeflow.form import NAMES, REQUEST
from pipelines.kubeflow.upload import NAME, USER, add_connection, connect, register
from pipelines.planning.flags import add_request, request_of
from pipelines.planning.request import Request
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import read_profile
from pipelines.steps.running import by_reason, failures, root_of_run
from trainer.errors import InputError, RunError
from trainer.storage import join, layout

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Kubeflow
    from pipelines.kubeflow.follow import Followed

CONTACT_SECONDS = 30.0
"""How long to wait for a server that does not respond, before there is a run."""
LOST_SECONDS = 600.0
"""How long to wait for a lost connection to return, while the run continues on the server."""
CLOCK_SECONDS = 60.0
"""Allowed difference between the clocks of the server and the steps."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `submit`."""
    parser = commands.add_parser("submit", parents=[common], help="run the experiment on a Kubeflow server, and wait for it")
    add_connection(parser, namespace="namespace of the run, for multi-user Kubeflow (KFP_NAMESPACE)")
    add_request(parser)
    parser.add_argument("--pipelines-image", default="", help="image in which the steps run (default: the registered pipeline's)")
    parser.add_argument(
        "--service-account", default=os.environ.get("KFP_SERVICE_ACCOUNT", ""), help="service account of the steps (KFP_SERVICE_ACCOUNT)"
    )
    parser.add_argument("--no-wait", action="store_true", help="exit once the run is submitted")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end; progress goes to stderr")
    parser.set_defaults(run=_submit)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A run that was submitted.

    Attributes:
        run: its id.
        name: as people see it.
        link: where people see it; empty if the UI's address is not known.
        version: of the pipeline.
        parameters: of the pipeline.
    """

    run: str
    name: str
    link: str
    version: str
    parameters: dict[str, Any]

    @property
    def place(self) -> str:
        """Where to look for it."""
        return self.link or f"run {self.run}"


def _submit(options: argparse.Namespace) -> int:
    request = resolve(request_of(options), kubeflow=True)
    server = connect(options, retry_seconds=CONTACT_SECONDS, runs=True)

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    submission = submit(server, request, image=options.pipelines_image, service_account=options.service_account)
    where = submission.link or f"{submission.run} (KFP_UI, the address of Kubeflow's UI, makes this a link)"
    say(f"run {submission.name} of pipeline version {submission.version}: {where}")
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
    if not options.no_wait:
        server.retry_seconds = LOST_SECONDS
        result |= _follow(server, submission, request, say, noise=options.verbose)
    if result.get("line"):
        print(f"pipelines submit: {result['line']}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))
    elif result["state"] == "SUCCEEDED":
        _print_report(str(result["folder"]), submission.place)
    return int(result["exit_code"])


def _follow(server: "Kubeflow", submission: Submission, request: Request, say: Callable[[str], None], *, noise: bool) -> dict[str, Any]:
    from pipelines.kubeflow.follow import RunFollower, RunLost

    follower = RunFollower(server, submission.run, say, noise=noise)
    try:
        return result_of(follower.follow(), request)
    except KeyboardInterrupt:
        how = "" if follower.stopped else ", which was not terminated, since Kubeflow has not responded"
        return {"state": "CANCELING", "exit_code": 130, "line": f"no longer waiting for the run{how}: {submission.place}"}
    except RunLost:
        raise
    except (InputError, RunError) as error:
        kind = InputError if isinstance(error, InputError) else RunError
        raise kind(f"{error}; the run continues: {submission.place}") from error


def submit(server: "Kubeflow", request: Request, *, image: str, service_account: str) -> Submission:
    """Upload the pipeline unless it is there already, and start a run of it.

    Args:
        server: where.
        request: resolved with `kubeflow=True`.
        image: the pipelines image; empty: that of the version that was registered last.
        service_account: of the steps' pods; empty: the server's default.
    """
    from pipelines.kubeflow.client import NotFound

    try:
        registered, user = server.newest(NAME)
    except NotFound as error:
        if not image:
            raise InputError(f"{error}: install the chart, which registers one, or set the image with --pipelines-image") from error
        registered, user = image, USER
    pipeline, version, version_name = register(server, NAME, image or registered, user=user, anywhere=True)
    parameters = {REQUEST: json.dumps(request.stored()), **({NAMES["profile"]: request.profile} if request.profile else {})}
    experiment = request.experiment
    name = f"{experiment}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    place = server.experiment(experiment)
    run = server.start(name, experiment=place, pipeline=pipeline, version=version, parameters=parameters, service_account=service_account)
    return Submission(run=run, name=name, link=server.link(run), version=version_name, parameters=parameters)


def result_of(followed: "Followed", request: Request) -> dict[str, Any]:
    """How a run ended: state, exit_code, failures, line, folder.

    Kubeflow has no exit codes: they are read from the store or, if it cannot be reached, from the steps' logs.

    Args:
        followed: the run that has ended, and what the logs of its steps say.
        request: the one that the run was started with.
    """
    from pipelines.kubeflow.follow import was_terminated

    run, folder = followed.run, followed.experiment or _experiment_uri(request)
    result: dict[str, Any] = {"state": run.state, "exit_code": 1, "failures": [], "line": "", "folder": folder}
    if run.state == "SUCCEEDED":
        return {**result, "exit_code": 0}
    if followed.stopped:
        return {**result, "exit_code": 130, "line": "stopped; submit the same experiment again to resume"}
    if was_terminated(run):
        return {**result, "line": "the run was terminated; submit the same experiment again to resume"}
    try:
        failures = _failures(run, request, folder)
    except (InputError, RunError, OSError) as error:
        why = "; ".join(f"{step}: {reason}" for step, reason in followed.reasons.items())
        why = why or getattr(run.error, "message", "") or "see the log of its steps"
        line = f"the run ended as {run.state} ({why}); its failure.json cannot be read from here: {error}"
        return {**result, "exit_code": _code_of(followed.exit_codes), "line": line}
    codes = [failure["exit_code"] for failure in failures] or list(followed.exit_codes)
    lines = list(by_reason(failures).values())
    lines = lines or [f"{step}: {reason}" for step, reason in followed.reasons.items()]
    lines = lines or [f"the run ended as {run.state}, but no step reported a reason"]
    return {**result, "exit_code": _code_of(codes), "failures": failures, "line": "; ".join(lines)}


def _code_of(codes: Sequence[int]) -> int:
    """2 if every failed step was given wrong input, else 1."""
    return InputError.exit_code if codes and set(codes) == {InputError.exit_code} else RunError.exit_code


def _failures(run: Any, request: Request, folder: str) -> list[dict[str, Any]]:
    if not folder:
        raise InputError("set ROOT, or set FIRSTSIGHT_PROFILE to a profile")
    since = run.created_at.timestamp() - CLOCK_SECONDS if run.created_at else 0.0
    return failures(folder, request.cells, since)


def _experiment_uri(request: Request) -> str:
    """Where the experiment lies, as far as this machine knows; empty if it does not: a cluster's profile need not be readable here."""
    try:
        return layout.experiment(root_of_run(request.root, read_profile()), request.experiment)
    except InputError:
        return ""


def _print_report(folder: str, place: str) -> None:
    """The report's table where this machine can read the store; else where the report is."""
    from rich.console import Console

    from pipelines.planning.summary import print_summary

    try:
        if folder:
            print_summary(Console(file=sys.stdout, highlight=False), folder)
            return
    except (InputError, RunError, OSError):
        pass  # only this machine cannot read the store: the run itself ended well
    page = f" and at {join(layout.report(folder), 'index.html')}" if folder else ""
    print(f"report: see the last step of {place}{page}")
