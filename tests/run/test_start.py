"""What a process imports before its first step."""

import json
import subprocess
import sys
from pathlib import Path

from tests.run import build

HEAVY = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm", "transformers", "open_clip", "torch.distributed.elastic")
PROGRAM = """
import json, sys
from trainer.run.train import launch
for stage, config in zip(("perceptual", "contrastive"), sys.argv[2:], strict=True):
    launch(stage, config, [])
import trainer.evaluation.measure
print(json.dumps([name for name in sys.argv[1].split() if name in sys.modules]))
"""


def test_stages_import_what_they_use(tmp_path: Path) -> None:
    """Two whole stages in one process, and what an evaluation needs: no compiler, no library of models, each of which takes seconds."""
    configs = [build.written(make(tmp_path, epochs=1)) for make in (build.perceptual, build.contrastive)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, " ".join(HEAVY), *configs], stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout) == []
