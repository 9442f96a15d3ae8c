"""`python -m pipelines upload | unregister`: put the pipeline into Kubeflow, or take it out. The chart's hooks call these.

A version is identified by its content, so that an upload can be repeated; its name also says, for people, which release of firstsight
it came with and when.
"""

import argparse
import hashlib
import os
import re
import time
from typing import TYPE_CHECKING

from pipelines.kubeflow.compiled import FOLDER
from pipelines.kubeflow.form import GUIDE
from trainer.config import require
from trainer.storage.scratch import temporary_folder

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Kubeflow

NAME = "firstsight"
PLACEHOLDER = "firstsight.invalid/python-pipelines:placeholder"
"""components.IMAGE; spelled again since that module needs kfp. A test holds the two together."""
USER = "10001"
"""The same as definition.USER."""
RETRY_SECONDS = 120.0
"""A server that has just been installed may still be starting."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `upload` and `unregister`."""
    upload = commands.add_parser("upload", parents=[common], help="register the pipeline with Kubeflow; safe to repeat")
    upload.add_argument("--image", required=True, help="the pipelines image, with tag or digest, in which the pipeline's steps run")
    upload.add_argument("--release", default="", help="version of firstsight, used as prefix of the pipeline version's name")
    user = "user ID of the steps' pods: a number, or `none` for the one that the cluster assigns, as on OpenShift (default: %(default)s)"
    upload.add_argument("--run-as-user", default=USER, metavar="UID", help=user)
    cost = "delete the pipeline and its versions from Kubeflow: runs stay, but the UI no longer shows any of their pages"
    unregister = commands.add_parser("unregister", parents=[common], help=cost)
    for command, run in ((upload, _upload), (unregister, _unregister)):
        command.add_argument("--name", default=NAME, help="name of the pipeline (default: %(default)s)")
        add_connection(command, namespace="the only namespace that sees the pipeline (KFP_NAMESPACE; default: all namespaces see it)")
        command.set_defaults(run=run)


def add_connection(parser: argparse.ArgumentParser, *, namespace: str) -> None:
    """Where Kubeflow is; credentials come from the environment only.

    Args:
        parser: of the command.
        namespace: help text of --namespace, which has a different meaning for a pipeline than for a run.
    """
    get = os.environ.get
    parser.add_argument("--endpoint", default=get("KFP_ENDPOINT", ""), metavar="URL", help="address of Kubeflow Pipelines (KFP_ENDPOINT)")
    parser.add_argument("--namespace", default=get("KFP_NAMESPACE", ""), metavar="NAME", help=namespace)
    parser.add_argument("--ca", default=get("KFP_CA", ""), metavar="FILE", help="CA certificates to trust for TLS (KFP_CA)")
    parser.add_argument(
        "--ui",
        default=get("KFP_UI", ""),
        metavar="URL",
        help="URL of the UI, for links (KFP_UI; default: the endpoint, if it is a UI)",
    )


def connect(options: argparse.Namespace, *, retry_seconds: float, runs: bool) -> "Kubeflow":
    """The server that the command line names, after checking it; `runs`: whether runs will be started there."""
    from pipelines.kubeflow.client import Kubeflow
    from pipelines.kubeflow.endpoint import Endpoint

    endpoint = Endpoint.from_environment(host=options.endpoint, namespace=options.namespace, ca=options.ca, ui=options.ui)
    server = Kubeflow(endpoint, retry_seconds=retry_seconds)
    server.check(runs=runs)
    return server


def register(
    server: "Kubeflow", name: str, image: str, release: str = "", *, user: str = USER, anywhere: bool = False
) -> tuple[str, str, str]:
    """Upload the compiled pipeline for an image, or find it; ids of pipeline and version, and the version's name.

    Args:
        server: where; the namespace of its endpoint, if any, owns the pipeline.
        name: of the pipeline.
        image: the pipelines image.
        release: version of firstsight, for the name of a new version; may be empty.
        user: of the steps' pods: a number, or `none`.
        anywhere: also accept a version of the shared pipeline.
    """
    require("image", image, "the name of an image", bool(image.strip()) and not set(image) & set(" \t\n'\"{}"))
    text = run_as((FOLDER / "firstsight.yaml").read_text().replace(PLACEHOLDER, image), user)
    content = f"sha-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    for pipeline in server.usable_pipelines(name) if anywhere else ():
        found, version = server.find_version(pipeline, content)
        if found:
            return pipeline, found, version
    version = "-".join(filter(None, [release, time.strftime("%Y-%m-%d", time.gmtime()), content]))
    with temporary_folder("upload") as folder:
        package = folder / "firstsight.yaml"  # the server looks at the file extension
        package.write_text(text)
        return server.upload(name, version, package, content, GUIDE)


def run_as(text: str, user: str) -> str:
    """The compiled pipeline with another user and group for the steps' pods, or with none, since their image names its own.

    Raises:
        InputError: neither a number nor `none`.
    """
    rule = "a number between 1 and 2147483647, or none"
    require("--run-as-user", user, rule, user == "none" or (user.isascii() and user.isdecimal() and 1 <= int(user) < 2**31))
    line = re.compile(rf"^( *runAs(?:User|Group): )'{USER}'\n", re.MULTILINE)
    return line.sub("" if user == "none" else rf"\g<1>'{user}'\n", text)


def _upload(options: argparse.Namespace) -> int:
    server = connect(options, retry_seconds=RETRY_SECONDS, runs=False)
    pipeline, _, version = register(server, options.name, options.image, options.release, user=options.run_as_user)
    whose = f"of namespace {options.namespace}" if options.namespace else "shared"
    print(f"pipeline {options.name} ({whose}, {pipeline}), version {version}, runs in {options.image}")
    return 0


def _unregister(options: argparse.Namespace) -> int:
    server = connect(options, retry_seconds=RETRY_SECONDS, runs=False)
    print(f"pipeline {options.name}: {'unregistered' if server.delete_pipeline(options.name) else 'was not registered'}")
    return 0
