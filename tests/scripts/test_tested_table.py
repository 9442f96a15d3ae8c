"""The table of what is tested with what is what the tests run today."""

from pathlib import Path

import pytest

from scripts import tested_table


def test_the_page_is_what_the_script_writes():
    page = tested_table.PAGE.read_text(encoding="utf-8")
    assert tested_table.page(page) == page


def test_the_servers_are_those_of_the_settings():
    """Where these repeat what a go.mod says."""
    rows = {name: version for name, version, _ in tested_table.servers()}

    assert {"Kubernetes", "training operator v1", "Kueue", "MinIO", "Helm 3"} < rows.keys()
    assert rows["Kubernetes"] == tested_table.settings.KUBERNETES
    assert rows["Prometheus operator"] == f"v{tested_table.settings.PROMETHEUS_OPERATOR}"
    for name, image in (("Kueue", tested_table.settings.KUEUE_IMAGE), ("training operator v1", tested_table.settings.OPERATOR_IMAGE)):
        assert rows[name] == image.rpartition(":")[2]


def test_two_versions_of_a_server_stand_in_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By what their folders build, whatever they are called; what builds nothing known is refused."""
    for name, version in (("trainer", "v2.0.0"), ("newest", "v2.3.0")):
        (tmp_path / name).mkdir()
        text = f"tool github.com/kubeflow/trainer/v2/cmd/x\n\nrequire (\n\tgithub.com/kubeflow/trainer/v2 {version} // indirect\n)\n"
        (tmp_path / name / "go.mod").write_text(text)
    monkeypatch.setattr(tested_table, "TOOLS", tmp_path)
    assert [row[:2] for row in tested_table.servers()] == [("Kubeflow Trainer v2", "v2.0.0, v2.3.0")]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "go.mod").write_text("tool example.org/other\n")

    with pytest.raises(LookupError, match="other: no row"):
        tested_table.servers()
