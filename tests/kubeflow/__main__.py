"""`python -m tests.kubeflow [SCENARIO …]`: the campaign on KFP_ENDPOINT, or without one against the stand-in; `make e2e-kfp`.

Prints what it sees, then a table, which it also writes to build/e2e-kfp.md; exit 1 if something is not as it should be.
"""

import os
import secrets
import sys
import tempfile
from pathlib import Path

from tests.kubeflow.campaign import Campaign, World
from tests.kubeflow.dry import dry_world
from tests.kubeflow.worlds import Real
from trainer.errors import exit_code

TABLE = Path(__file__).parents[2] / "build/e2e-kfp.md"


def main(scenarios: list[str]) -> int:
    """Run them; the exit code."""
    if os.environ.get("KFP_ENDPOINT"):
        return _run(Real(), scenarios)
    with tempfile.TemporaryDirectory() as folder, dry_world(Path(folder)) as world:
        return _run(world, scenarios)


def _run(world: World, scenarios: list[str]) -> int:
    campaign = Campaign(world, prefix=f"e2e-{secrets.token_hex(3)}", say=lambda line: print(line, flush=True))
    try:
        return 0 if campaign.go(scenarios) else 1
    finally:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(campaign.table())
        print(f"\n{campaign.table()}\n{TABLE}")


if __name__ == "__main__":
    sys.exit(exit_code("e2e-kfp", lambda: main(sys.argv[1:]), verbose=False))
