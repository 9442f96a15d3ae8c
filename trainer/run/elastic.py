"""Many ranks: torchrun's elastic agent, started by us, so that a rank that exited 2 is never started again.

In a PyTorchJob the operator says through PET_* variables how the pods find each other, and those win; else the ranks
of one machine meet at a port of their own.
"""

import os
import sys
import time
import uuid
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous

from trainer.config import StageConfig
from trainer.errors import InputError, RunError, Stopped
from trainer.storage import layout
from trainer.storage.failures import read_failure
from trainer.storage.scratch import temporary_folder

SHUTDOWN_SECONDS = 150
"""How long ranks may take to save after SIGTERM; pods have 180 s of grace."""


class Agent(LocalElasticAgent):
    """Restarts the group in place, unless a rank said that its input is wrong."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED and any(failure.exitcode == InputError.exit_code for failure in result.failures.values()):
            self._remaining_restarts = 0
        return result


def run_agent(config: StageConfig, arguments: list[str]) -> None:
    """Start the ranks of this machine and watch them until they end.

    Args:
        config: its placement says how many.
        arguments: of the Python interpreter, for one rank.

    Raises:
        InputError: a rank found the input wrong.
        RunError: a rank failed, and the restarts are used up; the line is the first failure's. Or the machine that
            holds the rendezvous is gone: every container starts again.
        Stopped: this process was told to stop, and so told the ranks.
    """
    began, spec = time.time(), _spec(config, arguments)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
    # The agent's own store would serve every round, and a rank find in it the address of a peer that died in the round before,
    # for which it waits until the group's time-out (pytorch #135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    close = True
    try:
        with temporary_folder("ranks") as folder:  # what a killed agent leaves there, the next one sweeps
            logs = DefaultLogsSpecs(log_dir=str(folder))
            result = Agent(spec=spec, logs_specs=logs, start_method="spawn", shutdown_timeout=SHUTDOWN_SECONDS).run()
    except SignalException as error:
        close = False  # closing it would end the rendezvous for the other machines too
        raise Stopped(f"{layout.stage_title(config)}: stopped by signal {error.sigval}; ranks were told to save") from error
    except RendezvousError as error:
        raise RunError(f"{layout.stage_title(config)}: machines lost the rendezvous (worker 0): {error}") from error
    finally:
        if close:
            spec.rdzv_handler.shutdown()
    if result.is_failed():
        _raise(config, result.failures, began)


def _spec(config: StageConfig, arguments: list[str]) -> WorkerSpec:
    placement, environment = config.placement, os.environ
    endpoint = environment.get("PET_RDZV_ENDPOINT", "")
    if not endpoint and placement.nodes > 1:
        raise InputError(f"placement.nodes must be 1 unless PET_RDZV_ENDPOINT sets a rendezvous endpoint, got {placement.nodes}")
    low, _, high = environment.get("PET_NNODES", str(placement.nodes)).partition(":")
    per_node = environment.get("PET_NPROC_PER_NODE", "")
    options = dict(part.split("=", 1) for part in environment.get("PET_RDZV_CONF", "").split(",") if part)
    parameters = RendezvousParameters(
        backend=environment.get("PET_RDZV_BACKEND", "c10d"),
        endpoint=endpoint or "localhost:0",
        # where pods meet, all must say the same; the training operator gives no id unless the job names one
        run_id=environment.get("PET_RDZV_ID") or ("firstsight" if endpoint else str(uuid.uuid4())),
        min_nodes=int(low),
        max_nodes=int(high or low),
        local_addr=None if endpoint else "localhost",
        **options,
    )
    return WorkerSpec(
        role="trainer",
        local_world_size=int(per_node) if per_node.isdigit() else placement.processes_per_node,
        entrypoint=sys.executable,
        args=("-u", *arguments),
        rdzv_handler=rendezvous.get_rendezvous_handler(parameters),
        max_restarts=int(environment.get("PET_MAX_RESTARTS", placement.max_restarts)),
        monitor_interval=0.1,
    )


def _raise(config: StageConfig, failures: dict[int, Any], began: float) -> None:
    """The error of the rank that failed first, of its own kind; its line is the one that it left in failure.json."""
    wrong_input = next((failure for failure in failures.values() if failure.exitcode == InputError.exit_code), None)
    failure = wrong_input or min(failures.values(), key=lambda failure: failure.timestamp)
    ended = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"exited with {failure.exitcode}"
    said = read_failure(config.output)
    if said is not None and said.time >= began and said.exit_code == failure.exitcode:
        line = said.line
    else:
        line = f"{layout.stage_title(config)}: rank {failure.local_rank} of this machine {ended}"
    kinds: dict[int, type[InputError | RunError]] = {InputError.exit_code: InputError, Stopped.exit_code: Stopped}
    raise kinds.get(failure.exitcode, RunError)(line)
