"""`python -m tests.cluster build | up | down | status | check | tools`."""

import json
import sys
from collections.abc import Callable

from tests.cluster import addons, build, harness, node, volumes
from tests.cluster.store import deploy_store


def main() -> int:
    """Run one verb; `up` builds what is missing first, `tools [name …]` prints the folder of helm, kubectl and what checks charts.

    `check` says in one line what keeps e2e from running on this machine, before anything is built.
    """
    verbs: dict[str, Callable[[], None]] = {
        "build": build.build,
        "up": _up,
        "down": node.down,
        "status": lambda: print(json.dumps(node.status(), indent=1)),
        "check": lambda: build.require_machine() if harness.own_cluster() else None,
        "tools": lambda: print(build.chart_tools(sys.argv[2:])),
    }
    if not (len(sys.argv) == 2 or sys.argv[1:2] == ["tools"]) or sys.argv[1] not in verbs:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        verbs[sys.argv[1]]()
    except (AssertionError, RuntimeError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _up() -> None:
    build.require_machine()
    build.build()
    node.up()
    volumes.prepare()
    addons.deploy()
    deploy_store("fs-store")


if __name__ == "__main__":
    sys.exit(main())
