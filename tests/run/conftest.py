"""Fixtures of the training loop's tests."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.run.toy import ToyStage, Trained
from trainer.config import StageConfig
from trainer.model.distributed import Distributed
from trainer.run import loop


@pytest.fixture
def run_toy(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Runs the loop with the toy stage; `after` is called with the stage after each step's optimiser."""

    def run(config: StageConfig, *, poisoned: frozenset[int] = frozenset(), after: Callable[[ToyStage], None] | None = None) -> ToyStage:
        built: list[ToyStage] = []

        def build(config: StageConfig, dist: Distributed) -> Any:
            stage = ToyStage(config, dist, poisoned)
            if after is not None:
                stage.after_optimizer = lambda: after(stage)  # type: ignore[method-assign]
            built.append(stage)
            return stage

        monkeypatch.setattr(loop, "build_stage", build)
        loop.train(config)
        return built[0]

    return run
