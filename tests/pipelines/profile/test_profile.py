"""A run profile: what is refused in one, in one line with its file and key."""

from pathlib import Path

import pytest

from pipelines.profile.profile import read_profile
from trainer.errors import InputError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rooot: x", "rooot is not a setting: did you mean root?"),
        ("root: /etc", "root must be a folder for data"),
        ('root: "a\\nb"', "root must be one line"),
        ('links: {dashboard: "http://x/\\n{run}"}', "links.dashboard must be an address on one line"),
        ("placement: {compil: true}", "placement: compil is not a setting: did you mean compile?"),
        (f"placement: {{watchdog_seconds: 1{'0' * 400}}}", "watchdog_seconds must be a number of at most 64 bits"),
        ("jobs: {nodes: 0}", "jobs.nodes must be between 1 and 1024, got 0"),
        ("jobs: {nodes: 100000}", "jobs.nodes must be between 1 and 1024, got 100000"),
        ("jobs: {gpus_per_node: 65}", "jobs.gpus_per_node must be between 0 and 64, got 65"),
        ("jobs: {cpu: 8Gi}", "jobs.cpu must be a number of cores such as 4 or 500m, got '8Gi'"),
        (f"jobs: {{gpu_memory: {'9' * 400}Gi}}", "jobs.gpu_memory must be a Kubernetes quantity"),
        ("jobs: {store_environment: {'A=B': x}}", "jobs.store_environment must be a mapping of variable names"),
        ("jobs: {store_environment: {'': x}}", "jobs.store_environment must be a mapping of variable names"),
        ('jobs: {store_environment: {A: "x\\0y"}}', "jobs.store_environment must be a mapping of variable names"),
        (
            "jobs: {pod_template: {metadata: {labels: {app.kubernetes.io/component: mine}}}}",
            "jobs.pod_template.metadata.labels must be without labels by which network policies",
        ),
        ("jobs: {pod_template: {metadata: {labels: {firstsight.dev/stage: stage-fetch}}}}", "jobs.pod_template.metadata.labels"),
        ("jobs: {pod_template: {spec: [1]}}", "jobs.pod_template.spec must be a mapping, got [1]"),
        ("jobs: {pod_template: {spec: {nodeSelector: [a]}}}", "jobs.pod_template.spec.nodeSelector must be a mapping"),
        ("jobs: {pod_template: {spec: {containers: {a: 1}}}}", "jobs.pod_template.spec.containers must be a list"),
        ("jobs: {pod_template: {spec: {containers: [{image: x}]}}}", "jobs.pod_template.spec.containers must be a list"),
        ("jobs: {pod_template: {spec: {containers: [{name: x, volumeMounts: [1]}]}}}", "volumeMounts must be a list of mappings"),
        ("jobs: &x {pod_template: *x}", "not YAML: found unconstructable recursive node"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_one_line(tmp_path: Path, text: str, line: str):
    path = tmp_path / "profile.yaml"
    path.write_text(text)

    with pytest.raises(InputError) as caught:
        read_profile(str(path))

    assert str(caught.value).startswith(f"{path}: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
