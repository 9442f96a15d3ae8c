"""Keeps KFP's executor from printing its whole input, some 50 lines of JSON, before a step says anything: Python runs this at its start.

The executor logs on level INFO and sets that up by logging.basicConfig, which does nothing where it was called before.
"""

import os

if os.environ.get("_KFP_RUNTIME") == "true":
    import logging
    import sys

    logging.basicConfig(stream=sys.stdout, format="[KFP Executor %(asctime)s %(levelname)s]: %(message)s", level=logging.WARNING)
