"""How a component is run: as KFP's executor is called, with the component's source from the image."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.kubeflow import components, execute
from pipelines.kubeflow.links_component import links
from pipelines.steps import lanes, planning

REPOSITORY = Path(__file__).parents[3]


def _input(folder: Path, *artifacts: str, **parameters: str) -> str:
    shown = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": "system.Markdown"}, "uri": f"{folder}/{name}"}]} for name in artifacts
    }
    return json.dumps({"inputs": {"parameterValues": parameters}, "outputs": {"artifacts": shown, "outputFile": f"{folder}/out.json"}})


def test_a_component_gets_its_inputs_and_writes_its_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With arguments of KFP's launcher in any order, and more of them than we know."""
    called: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setenv("_KFP_RUNTIME", "")  # set by a run, and set back
    monkeypatch.setattr(lanes, "work", lambda name, **given: called.append((name, given)) or Path(given["markdown"]).write_text("cells"))
    given = _input(tmp_path, "cells", request="s3://b/r.json#run", lane="lane-1-of-1")

    execute.main(["kfp.dsl.executor_main", "--newer", "x", "--executor_input", given, "--function_to_execute", "posthoc"])

    wanted = {"request": "s3://b/r.json#run", "lane": "lane-1-of-1", "markdown": f"{tmp_path}/cells"}
    assert called == [("posthoc", wanted)]
    assert (tmp_path / "cells").read_text() == "cells"


def test_what_a_component_returns_is_where_kfp_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_KFP_RUNTIME", "")
    monkeypatch.setattr(planning, "make_plan", lambda **given: (["lane-1-of-1"], "page"))

    execute.main(
        ["x", "--function_to_execute", "plan", "--executor_input", _input(tmp_path, "lanes", request="r", pairs="p", triplets="t")]
    )

    assert json.loads((tmp_path / "out.json").read_text())["parameterValues"] == {"Output": ["lane-1-of-1"]}
    assert (tmp_path / "lanes").read_text() == "page"


@pytest.mark.parametrize("missing", ["--function_to_execute", "--executor_input"])
def test_an_argument_that_is_missing_is_named(missing: str, capsys: pytest.CaptureFixture[str]):
    given = {"--function_to_execute": "plan", "--executor_input": "{}"}
    del given[missing]
    with pytest.raises(SystemExit, match="2"):
        execute.main(["x", *(part for pair in given.items() for part in pair)])

    assert f"the following arguments are required: {missing}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["links", "evaluate"])
def test_a_failed_step_s_log_is_its_own_and_not_the_executor_s_input(tmp_path: Path, name: str):
    """In a process of its own, as in a pod; `links` lies in a module of its own."""
    given = {"request": "no: such"} if name == "links" else {"request": f"{tmp_path}/experiments/e/requests/1.json"}
    component = links if name == "links" else components.evaluate
    described = _input(tmp_path, "page", "cells", **{**dict.fromkeys(component.component_spec.inputs, "x"), **given})
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    done = subprocess.run(
        [sys.executable, *execute.COMMAND[1:], "--executor_input", described, "--function_to_execute", name],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip

    assert done.returncode == 2
    said = (done.stdout + done.stderr).splitlines()
    assert len(said) <= 2
    assert said[-1].startswith(f"{ {'links': 'accept'}.get(name, name) }: ")
