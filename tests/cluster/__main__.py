"""`python -m tests.cluster build | up | down | status`."""

import json
import os
import sys
from collections.abc import Callable

from tests.cluster import addons, build, node


def main() -> int:
    """Run one verb; `up` builds what is missing first."""
    verbs: dict[str, Callable[[], None]] = {
        "build": build.build,
        "up": _up,
        "down": node.down,
        "status": lambda: print(json.dumps(node.status(), indent=1)),
    }
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        print(__doc__, file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("cluster: needs root: it makes a network namespace, mounts and cgroups", file=sys.stderr)
        return 2
    verbs[sys.argv[1]]()
    return 0


def _up() -> None:
    build.build()
    node.up()
    addons.deploy_training_operator()


if __name__ == "__main__":
    sys.exit(main())
