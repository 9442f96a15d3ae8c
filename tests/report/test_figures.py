import re
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.report import figures
from trainer.report.figures import curves, forest

LABELS = ("minus permuted: zero-shot demo-categories", "zero-shot mean per-class recall on demo-categories", "kitti-distance: accuracy")


def row(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.03}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The matplotlib figures behind the panels that a test makes."""
    kept: list[Figure] = []
    svg = figures._svg

    def keep(figure: Figure, name: str) -> str:
        kept.append(figure)
        return svg(figure, name)

    monkeypatch.setattr(figures, "_svg", keep)
    return kept


def test_no_label_of_a_forest_is_cut_off(drawn: list[Figure]) -> None:
    """The longest labels that the page makes end within the panel."""
    forest("perceptual minus random", [row(0.01 * n) for n in range(3)], LABELS, ["#0a0a01"] * 3, 1)
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    for text in drawn[0].axes[0].texts:
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= drawn[0].bbox.width, text.get_text()


def test_numbers_on_an_axis_keep_their_digits() -> None:
    """Paths are rounded to save bytes, what a reader reads is not: losses near .055 have ticks that differ."""
    panel = curves("Stage 1: loss", "epoch", "loss", {"perceptual": [([0.0, 1.0], [0.0545, 0.0555])]}, ["perceptual"])
    ticks = re.findall(r">\s*(0\.05\d+)\s*<", panel.svg)
    assert len(ticks) >= 3
    assert len(set(ticks)) == len(ticks)


def test_time_starts_at_zero(drawn: list[Figure]) -> None:
    """One point of a run is shown where it is, not on an axis of its own."""
    curves("Post-hoc: loss", "epoch", "loss", {"posthoc": [([1.0], [0.05])]}, ["posthoc"])
    assert drawn[0].axes[0].get_xlim()[0] == 0.0


def test_one_dot_is_no_chart() -> None:
    """A line needs two points of one seed; what has fewer is in the tables."""
    assert not figures.has_course({})
    assert not figures.has_course({"random": [([1.0], [0.5]), ([1.0], [0.6])], "perceptual": []})
    assert figures.has_course({"random": [([1.0], [0.5]), ([1.0, 2.0], [0.6, 0.7])]})
