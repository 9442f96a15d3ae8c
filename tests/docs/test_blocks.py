"""Every block of the operators' pages is run or rendered by a test, or says why not."""

import json
import shlex
import subprocess

import pytest
import yaml

from pipelines.operate.bucket import policy
from tests.cluster import programs
from tests.docs.blocks import PAGES, REPOSITORY, all_blocks, count, is_chart_values, read_blocks
from tests.docs.reading import Document

RUN_BY = {
    "docs/DAY_TWO.md": "tests/docs/test_day_two.py",
    "docs/KUBEFLOW.md": "tests/pipelines/kubeflow/test_exit_codes.py",
}
"""Which test runs a page's blocks that need no cluster."""


def test_every_block_is_tested_or_says_why_not(capsys: pytest.CaptureFixture[str]):
    """The count is printed, also where the test passes."""
    blocks = all_blocks()
    with capsys.disabled():
        print(f"\nblocks of the operators' pages: {count(blocks)}")
    wrong = [f"{block.page}:{block.line}: {block.mark or block.language}" for block in blocks if block.how == "unknown"]
    assert not wrong, "a block's language is sh, console, yaml or json, and a mark `run: cluster` or `not run: <reason>`"
    assert {block.page for block in blocks if block.how == "run"} == set(RUN_BY)
    assert sum(block.how == "excused" for block in blocks) <= 4


@pytest.mark.parametrize("page", PAGES)
def test_an_excuse_is_a_sentence(page: str):
    for block in read_blocks(page):
        if block.how == "excused":
            assert len(block.mark.removeprefix("not run: ").split()) >= 3, f"{page}:{block.line}"


def test_each_yaml_is_what_a_reader_takes():
    """Chart values are rendered by tests/chart/test_documents.py; tests/docs/test_names.py reads the others."""
    found = [block for block in all_blocks() if block.how == "rendered"]
    assert all(isinstance(yaml.safe_load(block.text), dict) for block in found)
    assert sum(map(is_chart_values, found)) > 8


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("```sh\nls\n```", "run"),
        ("<!-- run: cluster -->\n```sh\nls\n```", "cluster"),
        ("<!-- not run: needs a GPU -->\n```console\n$ ls\nx\n```", "excused"),
        ("<!-- not run: needs a GPU -->\n\n```bash\nls\n```", "run"),
        ("<!-- run: someday -->\n```sh\nls\n```", "unknown"),
        ("- x\n  ```yaml\n  a: 1\n  ```", "rendered"),
        ("```json\n{}\n```", ""),
        ("```\nls\n```", "unknown"),
        ("```zsh\nls\n```", "unknown"),
    ],
)
def test_a_mark_holds_for_the_block_right_below_it(text: str, how: str):
    (block,) = read_blocks("x.md", text + "\n")
    assert block.how == how
    assert block.text == {"rendered": "a: 1\n", "": "{}\n"}.get(how, "ls\n")


@pytest.mark.parametrize("text", ["~~~sh\nls\n~~~", "```sh {title}\nls\n```", "````sh\nls\n````", "```sh\nls\n"])
def test_a_fence_that_is_not_read_is_told(text: str):
    """Not left out."""
    with pytest.raises(AssertionError, match=r"^x\.md: a fence that is not read"):
        read_blocks("x.md", text + "\n")


@pytest.mark.slow
def test_kubectl_takes_each_command_that_a_page_gives_within_a_sentence():
    """As RUNBOOK does: verbs, flags and their values, as the program reads them before it asks a cluster; JSON in them is JSON."""
    kubectl, wrong, seen = str(programs.program("kubectl")), {}, 0
    for page in PAGES:
        for line, code in Document(page, (REPOSITORY / page).read_text()).inline():
            if code.startswith("kubectl "):
                words = shlex.split(code)[1:]
                end = words.index("--") if "--" in words else len(words)
                done = subprocess.run([kubectl, *words[:end], "--help", *words[end:]], capture_output=True, text=True)
                if done.returncode or "Usage:" not in done.stdout:
                    wrong[f"{page}:{line}"] = done.stderr
                for word in (word for word in words if word.startswith("{")):
                    json.loads(word)
                seen += 1
    assert wrong == {}
    assert seen > 12


def test_the_policy_of_a_page_is_the_one_that_the_chart_gives():
    """docs/OPERATIONS.md's JSON for AWS and MinIO, with the bundled store's own policy beside it."""
    (shown,) = [json.loads(block.text) for block in read_blocks("docs/OPERATIONS.md") if block.text.startswith('{"Version"')]
    assert shown == policy("s3://BUCKET/PREFIX")
