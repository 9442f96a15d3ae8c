"""The limits of a process: every command raises its soft limit of open files, for all that it starts too."""

import subprocess
import sys

import pytest

STARTS = {
    "trainer": "from trainer.__main__ import main; main(['inspect', '/nowhere'])",
    "pipelines": "from argparse import Namespace; from pipelines.__main__ import start; "
    "start(Namespace(command='x', verbose=False, run=lambda options: 0), 'pipelines')",
    "a step in Kubeflow": "from pipelines.kubeflow.execute import main; main(['x', '--function_to_execute=none', '--executor_input={}'])",
}


@pytest.mark.parametrize("start", STARTS)
def test_every_command_raises_the_soft_limit_to_the_hard_one(start: str) -> None:
    program = f"""
import contextlib, resource
with contextlib.suppress(AttributeError):
    {STARTS[start]}
print(resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run(["prlimit", "--nofile=128:512", sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(512, 512)\n", done.stderr
