"""The KFP SDK without its client, whose import of all of Kubernetes' models takes longer than a small run's steps."""

import os
from typing import Any

_RUNTIME_VARIABLE = "_KFP_RUNTIME"


def import_kfp() -> Any:
    """Import kfp as its own tasks do, without the client, and its DSL in full; returns kfp."""
    before = os.environ.get(_RUNTIME_VARIABLE)
    os.environ[_RUNTIME_VARIABLE] = "true"
    try:
        import kfp

        os.environ[_RUNTIME_VARIABLE] = "false"
        import kfp.dsl
        import kfp.local
    finally:
        os.environ.pop(_RUNTIME_VARIABLE) if before is None else os.environ.update({_RUNTIME_VARIABLE: before})
    return kfp
