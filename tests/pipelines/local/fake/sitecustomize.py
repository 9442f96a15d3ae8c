"""First on PYTHONPATH in tests of whole runs: `python -m trainer` becomes tests/pipelines/fake_trainer.py."""

import os
import sys

if sys.orig_argv[1:3] == ["-m", "trainer"]:
    from tests.pipelines.fake_trainer import main

    code = main(sys.orig_argv[3:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

if "FAKE_HEARTBEAT" in os.environ and sys.orig_argv[1:3] == ["-m", "pipelines"]:
    from pipelines.jobs import lease

    lease.HEARTBEAT_SECONDS = float(os.environ["FAKE_HEARTBEAT"])
