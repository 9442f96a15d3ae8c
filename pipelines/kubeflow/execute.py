"""Runs one component: `python3 -m pipelines.kubeflow.execute kfp.dsl.executor_main`, with the arguments that KFP gives its own executor.

KFP's executor loads a component's source from the command line, which would put it into six nodes of the Workflow per step; ours is in
the image. It also logs all of its input before the step logs anything. kfp.local runs only commands that name it, so ours does.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from trainer.limits import raise_descriptor_limit

COMMAND = ["python3", "-m", "pipelines.kubeflow.execute", "kfp.dsl.executor_main"]


def main(arguments: Sequence[str]) -> None:
    """Run a component by its function's name, on KFP's description of its inputs and outputs.

    Args:
        arguments: those of KFP's executor; unknown ones are ignored, as KFP does.
    """
    parser = argparse.ArgumentParser(prog=" ".join(COMMAND))
    parser.add_argument("stands_for")
    parser.add_argument("--function_to_execute", required=True)
    parser.add_argument("--executor_input", required=True, type=json.loads)
    given, _ = parser.parse_known_args(arguments)
    raise_descriptor_limit()
    os.environ["_KFP_RUNTIME"] = "true"  # otherwise kfp imports its compiler and its client
    from kfp.dsl.executor import Executor

    from pipelines.kubeflow import components, links_component

    name = given.function_to_execute
    function = getattr(links_component if name == "links" else components, name)
    Executor(executor_input=given.executor_input, function_to_execute=function).execute()


if __name__ == "__main__":
    main(sys.argv[1:])
