"""A credential is found in nothing that a run leaves or says, however the run ends."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client
import pytest
import yaml

from pipelines.__main__ import main as pipelines
from pipelines.profile.settings import JobSettings
from tests.boundaries import canaries
from tests.boundaries.canaries import ENVIRONMENT, FILE, URL_PASSWORD, URL_SIGNATURE, echo_server, found_in, set_free
from tests.faults.experiment import Experiment
from tests.faults.making import in_this_process, write_sources
from tests.faults.trials import DAMAGES, damaged, kind
from tests.pipelines.fake_objects import Status
from tests.pipelines.kubeflow.argo import FAILED, SUCCEEDED, Pod
from tests.pipelines.kubeflow_server import KubeflowServer, kubeflow_server
from tests.pipelines.launching import Scene, scene
from tests.pipelines.operator import JOBS, eventually
from tests.staging.remote.web import web_server
from trainer.__main__ import main as trainer
from trainer.staging.remote.addresses import PRIVATE_VARIABLE
from trainer.storage.retries import Backoff

pytestmark = pytest.mark.timeout(1800)
__all__ = ["scene"]
ROWS = re.compile(r"/rows/slice-\d+\.parquet$")
"""What is to be fetched: the one place where the URLs of a list are kept whole."""
PARTS = 32  # of the walk over all damage


class Listed(Experiment):
    """The small experiment, whose pairs come from a list of signed URLs."""

    @property
    def given(self) -> dict[str, object]:
        return {**super().given, "pairs": str(self.source / "list.yaml"), "max_reject_fraction": 0.5}

    def leaks(self, ended: object) -> list[str]:
        """Where a canary is: in an object of the store, in what the run said and told, in its metrics."""
        things = {name: data for name, data in self.content().items() if not ROWS.search(f"/{name}")}
        metrics = prometheus_client.generate_latest()
        return found_in({**things, "names": "\n".join(things), "what the run said": repr(ended), "its metrics": metrics})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listed]:
    """The experiment, finished, in an environment full of canaries."""
    folder = tmp_path_factory.mktemp("secrets")
    write_sources(folder, seed=0)
    with in_this_process() as patch, web_server() as web:
        set_free(patch, folder)
        patch.setenv(PRIVATE_VARIABLE, "127.0.0.0/8")
        patch.setattr("trainer.staging.remote.http._OUTAGE_AFTER", 10**9)
        patch.setattr(Backoff, "seconds", lambda self: 0.001)  # one of the servers is down
        rows = []
        for number in range(48):
            path = f"/{number:03d}.png?X-Amz-Algorithm=AWS4&X-Amz-Signature={URL_SIGNATURE}"
            web.pages[path] = (folder / f"pairs/{number:03d}.png").read_bytes()
            rows.append(f"{number},{web.url}{path},picture number {number},{('circle', 'square')[number % 2]}")
        rows += [
            f"gone,{web.url}/gone.png?sig={URL_SIGNATURE},a picture that is gone,circle",
            f"user,http://user:{URL_PASSWORD}@{web.url[7:]}/000.png,a picture behind a login,circle",
            f"bad,ftp://user:{URL_PASSWORD}@h/x.png?token={URL_SIGNATURE},no URL,circle",
            f"down,http://127.0.0.1:9/x.png?access_token={URL_SIGNATURE},a server that is down,circle",
        ]
        web.pages[f"/moved.png?sig={URL_SIGNATURE}"] = lambda count: (302, {"location": f"ftp://h/x?sig={URL_SIGNATURE}"}, b"")
        rows.append(f"moved,{web.url}/moved.png?sig={URL_SIGNATURE},a picture that has moved,circle")
        (folder / "list.csv").write_text("\n".join(["id,url,caption,label", *rows, ""]))
        described = {"kind": "urls", "list": str(folder / "list.csv"), "heldout_fraction": 0.25}
        (folder / "list.yaml").write_text(yaml.safe_dump(described))
        experiment = Listed(root=str(folder / "root"), source=folder)
        ended = experiment.run()
        assert ended.code == 0, ended
        assert experiment.leaks(ended) == []
        experiment.states["finished"] = experiment.content()
        yield experiment


def test_a_run_that_ends_well_tells_nobody(made: Listed) -> None:
    """And the canaries were there: rows that failed are named, without what signs them."""
    rejects = b"".join(data for name, data in made.states["finished"].items() if "/rejects/" in name).decode()
    for cause in ("http 404", "bad URL", "bad redirect", "connect"):
        assert cause in rejects
    assert f"sig={'***'}" in rejects
    planned = [data for name, data in made.states["finished"].items() if ROWS.search(f"/{name}")]
    assert planned
    assert found_in({"x": json.dumps(ENVIRONMENT)}) == ["x"]
    assert prometheus_client.generate_latest()


def trials(made: Listed) -> list[tuple[str, str]]:
    """One object of each kind, with each damage that it can have; kinds of which there is none are in other states."""
    names: dict[str, str] = {}
    for name in made.states["finished"]:
        row = kind(made, name)
        names.setdefault(row.name if row else name, name)
    return [(name, damage) for name in names.values() for damage in DAMAGES if damage != "older"]


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.slow if part < 5 else pytest.mark.campaign) for part in range(1, PARTS))]
)
def test_a_run_that_meets_damage_tells_nobody(made: Listed, part: int) -> None:
    """Each object of docs/RELIABILITY.md's table missing, cut short and flipped: healed or refused, and nothing leaks."""
    found = {}
    for number, (name, damage) in enumerate(trials(made)):
        if number % PARTS != part:
            continue
        _put_back(made)
        data = damaged(made, name, damage, random.Random(number), made.states["finished"][name])
        made.delete(name) if data is None else made.write(name, data)
        for _ in range(2):
            ended = made.run()
            found |= {f"{name} {damage}: {leak}": ended.line for leak in made.leaks(ended)}
    _put_back(made)
    assert found == {}


def _put_back(made: Listed) -> None:
    wanted, there = made.states["finished"], made.content()
    for name in there.keys() - wanted.keys():
        made.delete(name)
    for name, data in wanted.items():
        if there.get(name) != data:
            made.write(name, data)


@pytest.mark.parametrize("fault", ["interrupted", "out of memory", "disk full", "wrong input", "killed at a step"])
def test_a_run_that_breaks_off_tells_nobody(made: Listed, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else the tables of docs name, as far as one process can make it."""
    _put_back(made)
    for name in list(made.content()):
        if "/random-seed0/contrastive/final/" in name or "/report/" in name:
            made.delete(name)
    errors: dict[str, BaseException] = {
        "interrupted": KeyboardInterrupt(), "out of memory": MemoryError(f"of {ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}"),
        "disk full": OSError(28, f"No space left on device for https://h/x?sig={URL_SIGNATURE}"),
        "wrong input": ValueError(f"of {ENVIRONMENT['KFP_TOKEN']}"),
    }  # fmt: skip

    if fault == "killed at a step":
        with pytest.raises(RuntimeError):
            made.run(_killed)
        assert made.leaks("") == []
    else:
        monkeypatch.setattr("trainer.run.loop.train", lambda *a, **k: (_ for _ in ()).throw(errors[fault]))
        try:
            ended: object = made.run()
        except BaseException as error:
            ended = type(error)
        assert made.leaks(ended) == []
    _put_back(made)


def _killed(step: str) -> None:
    if step == "report":
        raise RuntimeError("killed")


STORE_COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "stage": lambda root: ["stage", "pairs", "--root", root, "--source", "demo", "--recipe", "smoke"],
    "fetch": lambda root: ["stage", "fetch", "--plan", f"{root}/datasets/x/1"],
    "train": lambda root: ["train", "contrastive", "--config", f"{root}/config.yaml"],
    "evaluate": lambda root: ["evaluate", "--config", f"{root}/config.yaml"],
    "report": lambda root: ["report", "--experiment", f"{root}/experiments/e"],
    "inspect": lambda root: ["inspect", f"{root}/datasets/x/1"],
}
RUN_COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "plan": lambda root: ["plan", "--root", root, "--recipe", "smoke"],
    "status": lambda root: ["status", "--root", root],
    "verify": lambda root: ["verify", "--root", root, "--recipe", "smoke"],
    "cancel": lambda root: ["cancel", "smoke"],
}


@pytest.mark.parametrize("verbose", [[], ["-v"]], ids=["", "verbose"])
@pytest.mark.parametrize("status", [301, 400, 403, 404, 503])
@pytest.mark.parametrize("where", ["environment", "file"])
def test_no_command_repeats_what_a_store_repeats(
    where: str, status: int, verbose: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command that opens a store, refused by one that quotes what it was sent, with tracebacks too."""
    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.001)
    set_free(monkeypatch, tmp_path, but=["AWS_SECRET_ACCESS_KEY"] if where == "file" else [])
    for name in ("AWS_PROFILE", "FIRSTSIGHT_PROFILE", "KUBECONFIG", "AWS_CA_BUNDLE", "FIRSTSIGHT_S3_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    if where == "file":
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0")
    with echo_server(status) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        for program, commands in ((trainer, STORE_COMMANDS), (pipelines, RUN_COMMANDS)):
            for name, command in commands.items():
                try:
                    code = program([*command("s3://bucket/root"), *(verbose if program is trainer else [])])
                except SystemExit as ended:
                    code = int(ended.code or 0)
                out, err = capfd.readouterr()
                assert found_in({"out": out, "err": err}) == [], name
                assert code in (0, 1, 2), (name, err)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 500])
@pytest.mark.parametrize("command", ["submit", "upload", "unregister"])
def test_no_command_repeats_what_kubeflow_repeats(
    status: int, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The token of a variable, of a file, and a cookie."""
    set_free(monkeypatch, tmp_path)
    monkeypatch.setattr(Backoff, "seconds", lambda self: 0.001)
    monkeypatch.setattr("pipelines.kubeflow.client.Retries", lambda seconds: _NoRetries())
    (tmp_path / "token").write_text(FILE)
    with echo_server(status) as url:
        monkeypatch.setenv("KFP_ENDPOINT", url)
        for variable, value in (("KFP_TOKEN", ENVIRONMENT["KFP_TOKEN"]), ("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))):
            monkeypatch.delenv("KFP_TOKEN", raising=False)
            monkeypatch.setenv(variable, value)
            try:
                code = pipelines([command, *(["--recipe", "smoke", "--pipelines-image", "a/pipelines:1"] if command == "submit" else [])])
            except SystemExit as ended:
                code = int(ended.code or 0)
            out, err = capfd.readouterr()
            assert found_in({"out": out, "err": err}) == []
            assert code in (1, 2), err


class _NoRetries:
    def wait(self, cause: str) -> None:
        from trainer.errors import RunError

        raise RunError(cause)

    def restart(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("ends", [SUCCEEDED, FAILED])
def test_kubeflow_is_told_no_credential_but_its_own(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In pipelines, versions, experiments and runs that it keeps."""
    set_free(monkeypatch, tmp_path)
    monkeypatch.delenv("KFP_COOKIE")
    monkeypatch.setattr("pipelines.kubeflow.follow.POLL_SECONDS", 0.01)
    with kubeflow_server() as server:
        server.token = ENVIRONMENT["KFP_TOKEN"]
        server.outcome = lambda pod: _ends(pod, ends)
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        code = pipelines(["submit", "--recipe", "smoke", "--arms", "random", "--pipelines-image", "a/pipelines:1"])
        assert code == (0 if ends == SUCCEEDED else 1)
        assert found_in(_kept(server)) == []
    out, err = capfd.readouterr()
    assert found_in({"out": out, "err": err}) == []


def _ends(pod: Pod, how: str) -> str:
    return how if pod.step == "contrastive" else SUCCEEDED


def _kept(server: KubeflowServer) -> dict[str, str]:
    runs = {name: json.dumps(run.body, default=str) for name, run in server.runs.items()}
    assert runs
    return {**runs, "all": repr((server.pipelines, server.versions, server.experiments, server.requests))}


FAULTS: dict[str, Callable[[Scene], None]] = {
    "succeeds": lambda scene: scene.succeed(),
    "fails": lambda scene: scene.operator.end(scene.name, "Failed", "it failed"),
    "is deleted": lambda scene: scene.api.remove(JOBS, scene.name),
}


def _objects(scene: Scene) -> dict[str, str]:
    return {str(key): json.dumps(thing, default=str) for key, thing in list(scene.api.objects.items())}


@pytest.mark.parametrize("fault", FAULTS)
def test_jobs_and_pods_hold_no_credential(fault: str, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They name the Secret that has them; nothing of the launcher's own environment goes into a job."""
    set_free(monkeypatch, tmp_path)
    settings = JobSettings(nodes=2, store_secret="firstsight", store_environment={"AWS_ENDPOINT_URL_S3": "http://minio:9000"})
    launch = scene.running(settings=settings)
    objects = _objects(scene)
    FAULTS[fault](scene)
    if fault == "succeeds":
        launch.outcome()
    else:
        eventually(lambda: launch.job.watch() or len(scene.operator.created) > 1)
    objects |= {f"then {name}": thing for name, thing in _objects(scene).items()}
    files = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "credentials"}
    assert any("firstsight" in thing for thing in objects.values())
    assert found_in({**objects, **files, "lines": launch.text()}) == []


def test_a_refusal_of_the_api_server_that_repeats_one_is_told_without(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_free(monkeypatch, tmp_path)
    message = f"denied: {ENVIRONMENT['AWS_SECRET_ACCESS_KEY']} of https://user:{URL_PASSWORD}@h/x"
    scene.api.refuse = lambda verb, resource, body: Status(403, "Forbidden", message, JOBS) if verb == "create" else None
    launch = scene.launch()
    outcome = launch.outcome()
    assert outcome.exit_code
    assert found_in({"outcome": repr(outcome), "lines": launch.text()}) == []
    assert canaries.ANY in message
