"""Whoever may press Run may write any parameter: each is inert, or refused in one line. Cases come from the request's own fields."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes import by_backend
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.planning.request import FIELDS, Request, merge, read_request, write_request
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import Links, Profile
from pipelines.profile.settings import JobSettings
from pipelines.steps import links
from pipelines.steps.notes import as_code, as_text
from tests.boundaries.canaries import ENVIRONMENT, set_free
from trainer.errors import InputError
from trainer.report.write import _inert

SECRET = ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]
HOSTILE = {
    "HTML": "<img src=x onerror=alert(1)>",
    "a script": "</code><script>alert(1)</script>",
    "a link": "[x](https://evil.example/)",
    "a picture": "![x](https://evil.example/pixel)",
    "the end of code": "a`<b>x</b>`b",
    "columns": "a|b|c",
    "format braces": "{experiment.__class__.__init__.__globals__}",
    "a number in braces": "{0}",
    "printf": "%s%n%(x)s",
    "a template": "{{x}}",
    "a template of Kubeflow": "{{$.inputs.parameters['root']}}",
    "a template of Argo": "{{workflow.parameters.x}}",
    "a variable of Kubernetes": "$(AWS_SECRET_ACCESS_KEY)",
    "such a variable in a URL": "https://evil.example/$(AWS_SECRET_ACCESS_KEY)",
    "a variable of a shell": "${AWS_SECRET_ACCESS_KEY}",
    "a command": "; rm -rf / #",
    "backticks": "`id`",
    "a flag": "--result=s3://other/x",
    "a short flag": "-h",
    "a way up": "../../../etc/passwd",
    "a way up in a store": "s3://bucket/a/../../other",
    "a file of the system": "/etc/passwd",
    "a token of Kubernetes": "file:///var/run/secrets/kubernetes.io/serviceaccount/token",
    "another scheme": "gopher://127.0.0.1:11211/x",
    "two lines": "a\nb: c",
    "a carriage return": "a\rb",
    "a null": "a\0b",
    "an escape": "\x1b[2J",
    "a change of direction": "a\u202eb",
    "half a character": "\ud800",
    "much": "x" * 10_000,
    "YAML's Python": "!!python/object/apply:os.system [id]",
    "YAML's alias": "&a [*a]",
    "credentials in a URL": "https://user:password@h/list.csv",
    "a signed URL": "https://h/list.csv?X-Amz-Signature=abc",
}
NEVER = ("{{", "$(", "\n", "\0", "\x1b", "\u202e", "password", "Signature")
"""What no accepted value may hold: something on its way would act on it."""
NOT_KUBEFLOW = ("profile",)
"""Fields that a person's own machine reads as a file."""


STRIDES = [3, pytest.param(1, marks=pytest.mark.campaign)]


def in_turn(cases: list[str], name: str, stride: int) -> list[str]:
    """In plain tests the fields take turns: three of them meet every case."""
    return cases[list(FIELDS).index(name) % stride :: stride]


def forms(text: str) -> list[Any]:
    """A text in each way in which it can be said: plain, in a list, as a key and as a value of a mapping, in YAML."""
    return [text, [text], {text: 1}, {"contrastive.epochs": text}, {"a": {"b": [text]}}, json.dumps({text: text})]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative places lead into an empty folder."""
    monkeypatch.chdir(tmp_path)
    set_free(monkeypatch, tmp_path)


def accepted(name: str, value: Any) -> Request | None:
    """The request with one parameter, as Kubeflow would resolve it; None if it is refused, in one short line."""
    try:
        return resolve(merge("", {"recipe": "smoke", "root": "s3://bucket/root", name: value}), kubeflow=name not in NOT_KUBEFLOW)
    except InputError as error:
        text = str(error)
    assert text.isprintable()
    assert SECRET not in text
    return None


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", FIELDS)
def test_a_parameter_is_inert_or_refused(name: str, stride: int, tmp_path: Path) -> None:
    """As it is stored, and in the page that the UI shows."""
    profile, taken = Profile(links=Links(dashboard="https://g/{experiment}")), 0
    for value in (form for text in in_turn([*HOSTILE.values()], name, stride) for form in forms(text)):
        request = accepted(name, value)
        if request is None:
            continue
        taken += 1
        written = json.dumps(request.stored(), ensure_ascii=False)
        assert not [part for part in NEVER if part in written], written
        stored = write_request(request, str(tmp_path / "root"))
        assert read_request(stored) == request
        assert_inert(links._page(profile, stored, "run", request, "ns", [str(value)[:500]]))
    assert taken < len(HOSTILE) * 3


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_job_is_told_what_was_meant(kind: str) -> None:
    """Of each kind: Kubernetes puts nothing in place of what an argument holds, and YAML reads it back."""
    value = HOSTILE[kind][:2000]
    for manifest in manifests(value):
        assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
        assert containers(manifest)
        for container in containers(manifest):
            assert [expanded(argument) for argument in container["args"]][: len(ARGUMENTS)] == [*ARGUMENTS[:-1], value]


ARGUMENTS = ("stage", "pairs", "--source", "")


def manifests(value: str) -> list[dict[str, Any]]:
    """A job of each kind with a hostile argument."""
    identity = Identity(root="s3://b/r", output="s3://b/r/o", experiment="e", arm="pairs", seed=0, stage="stage")
    settings = JobSettings(store_secret="firstsight")
    spec = JobSpec(name="stage", arguments=(*ARGUMENTS[:-1], value), folder="s3://b/r/o", purpose="stage", identity=identity)
    shapes = [IndexedJobs(settings), *(shape(settings) for name, shape in by_backend().items() if name != "local")]
    return [shape.manifest(spec, 1) for shape in shapes]


def containers(part: Any) -> list[dict[str, Any]]:
    """Every mapping with arguments in an object."""
    if isinstance(part, list):
        return [found for one in part for found in containers(one)]
    if not isinstance(part, dict):
        return []
    own = [part] if isinstance(part.get("args"), list) else []
    return own + [found for one in part.values() for found in containers(one)]


def expanded(argument: str) -> str:
    """What the kubelet makes of an argument: `$(NAME)` is the variable's value, `$$` a dollar (third_party/forked/golang/expansion)."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda found: "$" if found[0] == "$$" else ENVIRONMENT.get(found[1], found[0]), argument)


def assert_inert(markdown: str) -> None:
    """No tag, link or picture but the page's own, by a renderer that lets HTML through."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    tags = set(re.findall(r"<([a-z0-9]+)", html))
    assert tags <= {"h1", "p", "strong", "ul", "li", "code", "a", "pre", "em", "table", "thead", "tbody", "tr", "th", "td"}, html
    assert set(re.findall(r'href="([^"]*)"', html)) <= {"https://g/smoke"} | set(re.findall(r'href="(https://g/[a-z0-9._-]+)"', html)), html


def test_the_renderer_would_see_it() -> None:
    """What is looked for is there where nothing is escaped."""
    for kind in ("HTML", "a script", "a link", "a picture"):
        with pytest.raises(AssertionError):
            assert_inert(f"- note: {HOSTILE[kind]}")
    with pytest.raises(AssertionError):
        assert_inert(f"- the request: `{HOSTILE['the end of code']}`")
    assert expanded("$(AWS_SECRET_ACCESS_KEY)") == SECRET


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_failed_is_told_inertly(kind: str) -> None:
    """In lines, in tables and as code: an error may quote a source's own words."""
    text = HOSTILE[kind].replace("\n", " ").replace("\r", " ").replace("\0", " ")
    assert_inert(f"- {as_text(text)}\n- {as_code(text)}\n")
    assert_inert(f"| cell | |\n|---|---|\n| `c` | {as_text(text)} |\n")
    table = MarkdownIt("commonmark").enable("table").render(f"| cell | |\n|---|---|\n| `c` | {as_text(text)} |\n")
    assert table.count("<td>") == 2
    told = _inert({"a": [text, {text: (text, 1, None)}]})
    assert_inert(f"# {told['a'][0]}\n\n- {next(iter(told['a'][1]))}\n")


YAML = [
        "{name}: !!python/object/apply:os.system [touch bad]\n", "{name}: !!python/name:os.system\n", "{name}: !x y\n",
        "{name}: &a [*a]\n", "{name}: 1\n{name}: 2\n", "{name}: {{a: 1, a: 2}}\n", "? [1, 2]\n: 3\n", "{name}: {{? {{b: 1}} : 2}}\n",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
        "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n{name}: [*d, *d, *d, *d]\n",
        "base: &b {{a: 1}}\n{name}: {{<<: *b}}\n", "{name}: " + "[" * 2000 + "]" * 2000 + "\n", "{name}: " + "9" * 100_000 + "\n",
        "{name}: 0x" + "f" * 100_000 + "\n", "{name}: .nan\n", "{name}: -.inf\n", "{name}: 2026-01-01\n", "{name}: !!binary aGVsbG8=\n",
        "{name}: 'a\u2028b'\n", "%YAML 1.1\n---\n{name}: 1\n---\n{name}: 2\n", "{name}: \"\\x00\"\n", "{name}: {{__class__: x}}\n",
        "__proto__: {{}}\n", "{name}: '$(AWS_SECRET_ACCESS_KEY)'\n", "{name}: {{a: '{{{{x}}}}'}}\n",
    ]  # fmt: skip
"""A request with one parameter, `{name}`."""


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", FIELDS)
def test_a_request_in_yaml_is_inert_or_refused(name: str, stride: int, tmp_path: Path) -> None:
    """Tags, aliases of themselves and of many, keys twice, keys that are none, numbers without end."""
    for text in in_turn(YAML, name, stride):
        try:
            request = resolve(
                merge(text.format(name=name), {"recipe": "smoke"} if name != "recipe" else {}), kubeflow=name not in NOT_KUBEFLOW
            )
        except InputError as error:
            said = str(error)
        else:
            said = ""
            assert not [part for part in NEVER if part in json.dumps(request.stored(), ensure_ascii=False)]
        assert "\n" not in said
        assert [path.name for path in tmp_path.iterdir()] == ["credentials"]
