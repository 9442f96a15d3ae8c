"""The last step of a run, where what the first one left is damaged."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.steps.finish import finish
from trainer.storage import layout, write_json


@pytest.mark.parametrize("value", [{}, [], None, {"request": None}, {"request": 3}])
def test_a_record_of_the_run_that_names_no_request_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any):
    uri = layout.kubeflow_run(str(tmp_path), "a-run")
    write_json(uri, value)

    with pytest.raises(SystemExit) as ended:
        finish(run="a-run", request="", root=str(tmp_path), state="FAILED")

    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"finish: {uri}: ")
    assert said.count("\n") == 1
