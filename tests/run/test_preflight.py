"""Preflight: what is measured on ranks, what a recipe needs, and when it is said that they do not fit."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.ranks import run_ranks
from tests.run import build
from tests.run.toy import Trained, toy_config
from trainer.model.distributed import Distributed
from trainer.run import preflight
from trainer.run.preflight import Measured, Needed, complaints, needs
from trainer.storage.manifest import require_manifest

GOOD = Measured(ranks=16, gradient_bytes=605_000_000, reduce_seconds=0.02, read_bytes_per_second=2e9, flops_per_second=16 * 798e12)
NEED = Needed(step_seconds=0.1, samples_per_second=40_000, bytes_per_second=1e9)


def test_machines_that_keep_up_are_not_complained_of():
    assert complaints(GOOD, NEED) == []


def test_a_slow_network_is_named_with_its_numbers():
    slow = dataclasses.replace(GOOD, reduce_seconds=0.4)

    assert complaints(slow, NEED) == [
        "the network is slow for this recipe: a step sums 605 MB of gradients over 16 ranks in 0.4 s and computes for 0.1 s"
    ]


def test_a_slow_store_is_named_with_its_numbers():
    slow = dataclasses.replace(GOOD, read_bytes_per_second=72e6)

    assert complaints(slow, NEED) == [
        "the store is slow for this recipe: it delivers 72 MB/s, but 40,000 samples/s need 1,000 MB/s",
    ]


def test_one_rank_has_no_network_to_wait_for():
    assert complaints(dataclasses.replace(GOOD, ranks=1, reduce_seconds=0.0), NEED) == []


def test_needs_follow_from_half_of_the_measured_speed(tmp_path: Path):
    """A batch of 12 pairs; bytes are those of the shards, a sample's share each."""
    config = build.contrastive(tmp_path)
    shards = require_manifest(config.data.uri).split("train")
    flops = preflight.towers.flops_per_sample(config.model, preflight.CAPTION_TOKENS)

    need = needs(config, 12, 2e9, shards)

    assert need.step_seconds == pytest.approx(12 * flops / 1e9)
    assert need.samples_per_second == pytest.approx(1e9 / flops)
    assert need.bytes_per_second == pytest.approx(need.samples_per_second * sum(s.size for s in shards) / 24)


def _measure(dist: Distributed, uri: str) -> dict[str, Any]:
    shards = require_manifest(uri).split("train")
    stage = SimpleNamespace(module=nn.Linear(300, 200))
    config = SimpleNamespace(data=SimpleNamespace(uri=uri), stage="contrastive", contrastive=SimpleNamespace(precision="fp32"))
    run: Any = SimpleNamespace(dist=dist, stage=stage, config=config)
    return dataclasses.asdict(preflight.measure(run, shards))


def test_every_rank_gets_the_same_measurements(tmp_path: Path):
    """Gradients are counted in bytes, the slowest rank's sum counts, and all read from the store."""
    uri = build.contrastive(tmp_path).data.uri

    first, second = run_ranks(_measure, 2, uri)

    assert first == second
    assert first["gradient_bytes"] == 4 * (300 * 200 + 200)
    assert first["ranks"] == 2
    assert min(first["reduce_seconds"], first["read_bytes_per_second"], first["flops_per_second"]) > 0


def test_a_run_that_asks_for_it_says_what_it_found_before_step_1(tmp_path: Path, run_toy: Trained, caplog: pytest.LogCaptureFixture):
    """In the log and as the first line of progress.jsonl; the toy's shards are not there, which is said and ends nothing here."""
    run_toy(toy_config(tmp_path, preflight=True))

    first, second = [json.loads(line) for line in (tmp_path / "stage" / "progress.jsonl").read_text().splitlines()[:2]]
    assert (first["step"], second["step"]) == (0, 1)
    assert first["preflight_gradient_bytes"] == 16
    assert "preflight: the store could not be read" in caplog.text
    assert "shard-0-0.tar" in caplog.text


def test_a_run_that_goes_on_does_not_wait_for_it_again(tmp_path: Path, run_toy: Trained, caplog: pytest.LogCaptureFixture):
    """A restart in place has seconds, and the machines were measured."""

    def die(stage: Any) -> None:
        if stage.served.served[-1] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_toy(toy_config(tmp_path, checkpoint_every_steps=3), after=die)
    caplog.clear()
    run_toy(toy_config(tmp_path, checkpoint_every_steps=3, preflight=True))

    assert "preflight: " not in caplog.text


def test_without_the_setting_nothing_is_measured(tmp_path: Path, run_toy: Trained, caplog: pytest.LogCaptureFixture):
    run_toy(toy_config(tmp_path))

    assert "preflight: " not in caplog.text
