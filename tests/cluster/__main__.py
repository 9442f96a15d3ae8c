"""`python -m tests.cluster build | up | down | status | with | program`."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.cluster import addons, build, harness, node, programs, volumes
from tests.cluster.store import deploy_store
from tests.images import local


def main() -> int:
    """Run one verb; `up` builds what is missing first, `program NAME` prints where it lies, built or fetched the first time.

    `with command …` runs a command on the cluster that KUBECONFIG names, on the one that is up, or on one that is up for so long;
    its exit code is the command's.
    """
    verbs: dict[str, Callable[[], int | None]] = {
        "build": build.build,
        "up": _up,
        "down": node.down,
        "status": lambda: print(json.dumps(node.status(), indent=1)),
        "with": lambda: _with(arguments),
        "program": lambda: print(*map(programs.program, arguments), sep="\n"),
    }
    verb, *arguments = sys.argv[1:] or [""]
    if verb not in verbs or (arguments and verb not in ("with", "program")):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        return verbs[verb]() or 0
    except (AssertionError, RuntimeError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _up() -> None:
    _build()
    _start()


def _build() -> None:
    build.require_machine()
    build.build()


def _start() -> None:
    node.up()
    volumes.prepare()
    addons.deploy()
    deploy_store("fs-store")


def _with(command: list[str]) -> int:
    ours, runs_already = harness.own_cluster(), any(node.status().values())
    try:
        if ours:
            _build()
            with ThreadPoolExecutor() as pool:
                images = pool.submit(lambda: [make() for make in (local.pipelines_archive, local.trainer_runtime_archive)])
                _start()  # meanwhile: what tests need next
                images.result()
        return subprocess.call(command)
    finally:
        if ours and not runs_already:
            node.down()


if __name__ == "__main__":
    sys.exit(main())
