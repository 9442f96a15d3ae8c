"""What a real Kubeflow Pipelines 2.17.0 answered: tests/data/kfp-recordings, see INDEX.md there."""

import gzip
import json
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "data" / "kfp-recordings"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as it was recorded."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def answer(name: str) -> Answer:
    """The recorded answer in the file `name` below the folder of recordings."""
    path = FOLDER / name
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    head, body = raw.replace(b"\r\n\r\n", b"\n\n", 1).split(b"\n\n", 1)
    status, *lines = head.decode().splitlines()
    return Answer(int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body)


def workflow(name: str) -> dict[str, Any]:
    """The Workflow of a recorded run; nodes that Argo had compressed are unpacked."""
    value: dict[str, Any] = json.loads(gzip.decompress((FOLDER / name / "workflow.json.gz").read_bytes()))
    packed = value["status"].pop("compressedNodes", "")
    if packed:
        value["status"]["nodes"] = json.loads(gzip.decompress(b64decode(packed)))
    return value


def pipeline(name: str) -> list[dict[str, Any]]:
    """The compiled pipeline of a recorded run, as the documents of its YAML."""
    run = answer(f"{name}/run.v1beta1.http.gz").json()
    return list(yaml.load_all(run.get("run", run)["pipeline_spec"]["pipeline_manifest"], Loader=yaml.CSafeLoader))
