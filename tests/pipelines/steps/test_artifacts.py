"""What the exit task shows in Kubeflow's UI."""

from pathlib import Path

from pipelines.steps.artifacts import read_report
from trainer.storage import write_bytes, write_json


def test_the_report_is_shown_as_page_tables_and_figures(tmp_path: Path):
    """Scores are means over seeds, in percent; differences in points."""
    scores = [{"endpoint": "zero_shot", "arm": "random", "seed": seed, "value": value} for seed, value in ((0, 0.3), (1, 0.4))]
    contrasts = [{"endpoint": "zero_shot", "arm": "perceptual", "against": "random", "mean": 0.0123}]
    write_json(f"{tmp_path}/results.json", {"scores": scores, "contrasts": contrasts})
    write_bytes(f"{tmp_path}/index.html", b"<p>page</p>")
    write_bytes(f"{tmp_path}/report.md", b"# tables")

    html, markdown, figures = read_report(str(tmp_path))

    assert (html, markdown) == (b"<p>page</p>", b"# tables")
    assert figures == {"zero_shot random (%)": 35.0, "zero_shot perceptual - random (points)": 1.23}
