"""`python -m pipelines upload | unregister`: put the pipeline into Kubeflow, or take it out. The chart's hooks call these.

A version is known by its content, so that an upload can be repeated; its name also says, for people, which release of firstsight
it came with and when.
"""

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.kubeflow.compiled import FOLDER
from trainer.config import require

if TYPE_CHECKING:
    from pipelines.kubeflow.client import Kubeflow

NAME = "firstsight"
PLACEHOLDER = "firstsight.invalid/python-pipelines:placeholder"
"""components.IMAGE; spelled again since that module needs kfp. A test holds the two together."""
RETRY_SECONDS = 120.0
"""A server that was installed a moment ago may still be on its way up."""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `upload` and `unregister`."""
    upload = commands.add_parser("upload", parents=[common], help="register the pipeline with Kubeflow; safe to repeat")
    upload.add_argument("--image", required=True, help="the pipelines image, with tag or digest, in which its steps run")
    upload.add_argument("--release", default="", help="version of firstsight, to begin the pipeline version's name with")
    unregister = commands.add_parser("unregister", parents=[common], help="take the pipeline and its versions out of Kubeflow; runs stay")
    for command, run in ((upload, _upload), (unregister, _unregister)):
        command.add_argument("--name", default=NAME, help="of the pipeline (default: %(default)s)")
        add_connection(command)
        command.set_defaults(run=run)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Where Kubeflow is; credentials come from the environment only."""
    get = os.environ.get
    parser.add_argument("--endpoint", default=get("KFP_ENDPOINT", ""), metavar="URL", help="of Kubeflow Pipelines (KFP_ENDPOINT)")
    parser.add_argument("--namespace", default=get("KFP_NAMESPACE", ""), help="of the runs, where there are several (KFP_NAMESPACE)")
    parser.add_argument("--ca", default=get("KFP_CA", ""), metavar="FILE", help="certificates that TLS trusts (KFP_CA)")
    parser.add_argument("--ui", default=get("KFP_UI", ""), metavar="URL", help="of the UI, for links (KFP_UI; default: the endpoint)")


def connect(options: argparse.Namespace, *, retry_seconds: float) -> "Kubeflow":
    """The server of the command line, looked at once."""
    from pipelines.kubeflow.client import Endpoint, Kubeflow

    endpoint = Endpoint.from_environment(host=options.endpoint, namespace=options.namespace, ca=options.ca, ui=options.ui)
    server = Kubeflow(endpoint, retry_seconds=retry_seconds)
    server.check()
    return server


def register(server: "Kubeflow", name: str, image: str, release: str = "") -> tuple[str, str, str]:
    """Upload the compiled pipeline for an image, or find it; ids of pipeline and version, and the version's name.

    Args:
        server: where.
        name: of the pipeline.
        image: the pipelines image.
        release: version of firstsight, for the name of a new version; may be empty.
    """
    require("image", image, "the name of an image", bool(image.strip()) and not set(image) & set(" \t\n'\"{}"))
    text = (FOLDER / "firstsight.yaml").read_text().replace(PLACEHOLDER, image)
    content = f"sha-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    version = "-".join(filter(None, [release, time.strftime("%Y-%m-%d", time.gmtime()), content]))
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "firstsight.yaml"  # the server looks at the ending
        package.write_text(text)
        return server.upload(name, version, package, content)


def _upload(options: argparse.Namespace) -> int:
    server = connect(options, retry_seconds=RETRY_SECONDS)
    pipeline, _, version = register(server, options.name, options.image, options.release)
    print(f"pipeline {options.name} ({pipeline}), version {version}, runs in {options.image}")
    return 0


def _unregister(options: argparse.Namespace) -> int:
    server = connect(options, retry_seconds=RETRY_SECONDS)
    print(f"pipeline {options.name}: {'unregistered' if server.delete_pipeline(options.name) else 'was not registered'}")
    return 0
