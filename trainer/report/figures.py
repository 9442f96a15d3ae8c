"""The page's figures: small matplotlib panels as inline SVG, each about as wide as a phone, with alt text for those who cannot see them.

Colours are drawn as placeholders and replaced by the page's CSS variables, so one drawing serves the light and the
dark theme and print; text stays text in the page's font.
"""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report.answer import points

WIDTH = 4.0
"""Inches; matplotlib's SVG has 72 units per inch, and the page shows one unit as at least 1.25 CSS pixels."""
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_VARIABLES = {_INK: "var(--ink)", _MUTED: "var(--muted)", _GRID: "var(--line)"} | {f"#0a0a{n:02d}": f"var(--arm-{n})" for n in range(8)}
_STYLE: Any = {
    "font.size": 9.6, "font.family": "sans-serif", "svg.fonttype": "none", "text.parse_math": False,
    "axes.titlesize": 10.4, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED, "axes.titlecolor": _INK, "text.color": _INK, "xtick.color": _GRID, "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED, "axes.grid": True, "grid.color": _GRID, "grid.linewidth": 0.6,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9.6, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip
_CURVE_POINTS = 200
_MARKERS = "osD^vPX*"

Curve = tuple[Sequence[float], Sequence[float]]
"""x and y of one seed."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of the page.

    Attributes:
        svg: inline SVG.
        caption: one sentence below it.
        alt: what it shows, in words.
    """

    svg: str
    caption: str
    alt: str


def arm_colour(arms: Sequence[str], arm: str) -> str:
    """The placeholder for an arm's colour; an arm has the same one in every panel."""
    return f"#0a0a{list(arms).index(arm) % 8:02d}"


def has_course(series: Mapping[str, Sequence[Curve]]) -> bool:
    """Whether there is a line to draw, that is, some seed has at least two points."""
    return any(len(x) > 1 for seeds in series.values() for x, _ in seeds)


def curves(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Curve]],
    arms: Sequence[str],
    levels: Mapping[str, float] | None = None,
    *,
    doubling: bool = False,
    fits: Mapping[str, tuple[float, float]] | None = None,
) -> Panel:
    """Lines over training, one colour per arm: the mean over seeds, with each seed as a thin line; `levels` are named horizontal lines.

    With `doubling` x counts samples, and a doubling of them is as wide everywhere. `fits` has a and b of the power law a · x^b of an
    arm, drawn dashed from its first moment after the start to its last.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panel(title, x_label, y_label, 2.7)
        for arm, seeds in series.items():
            colour = arm_colour(arms, arm)
            shared = len(seeds) > 1 and all(list(x) == list(seeds[0][0]) for x, _ in seeds)
            lines = [(seeds[0][0], np.mean([y for _, y in seeds], axis=0).tolist())] if shared else seeds
            for number, (x, y) in enumerate(lines):
                mark: dict[str, Any] = {"marker": _MARKERS[list(arms).index(arm) % 8], "markersize": 3.5} if len(x) <= 24 else {}
                axes.plot(*_thin(x, y), color=colour, label=arm if number == 0 else None, **mark)
            for x, y in seeds if shared else []:
                axes.plot(*_thin(x, y), color=colour, alpha=0.35, linewidth=0.8)
            if fits and arm in fits:
                scale, exponent = fits[arm]
                seen = [x for xs, _ in seeds for x in xs if x > 0]
                along = np.geomspace(min(seen), max(seen), 40)
                axes.plot(along, scale * along**exponent, color=colour, linestyle=(0, (4, 2)), linewidth=1.0)
        axes.set_xlim(left=0)
        if doubling:
            _double(axes, [x for seeds in series.values() for xs, _ in seeds for x in xs])
        _levels(axes, levels or {})
        _legend(figure, axes)
        return Panel(svg=_svg(figure, title), caption="", alt=_curves_alt(title, x_label, y_label, series))


def differences(title: str, x_label: str, series: Mapping[str, Sequence[Mapping[str, Any]]], arms: Sequence[str]) -> Panel:
    """Differences over training with a band showing their 95 % intervals, one colour per arm; x as in `curves` with `doubling`.

    Args:
        title: of the panel.
        x_label: what x counts.
        series: arm -> rows with samples, mean, low and high.
        arms: all arms, for colours.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panel(title, x_label, "points", 2.7)
        words = []
        for arm, rows in series.items():
            colour, x = arm_colour(arms, arm), [row["samples"] for row in rows]
            marker = _MARKERS[list(arms).index(arm) % 8]
            axes.plot(x, [100 * row["mean"] for row in rows], color=colour, label=arm, marker=marker, markersize=3.5)
            low, high = ([np.nan if row[end] is None else 100 * row[end] for row in rows] for end in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            words.append(f"{arm}: " + ", ".join(f"{_count(row['samples'])} {points(row['mean'])} ({_span(row)})" for row in rows))
        axes.axhline(0, color=_INK, linewidth=1.0)
        axes.set_xlim(left=0)
        _double(axes, [row["samples"] for rows in series.values() for row in rows])
        _legend(figure, axes)
        return Panel(svg=_svg(figure, title), caption="", alt=f"{title}, in percentage points against {x_label}. {'; '.join(words)}.")


def along(
    title: str,
    y_label: str,
    rows: Sequence[tuple[str, Any, float, tuple[float, float] | None, Sequence[float]]],
    *,
    x: Sequence[Any],
    x_label: str,
    numeric: bool,
    log: bool,
    arms: Sequence[str],
    zero: bool,
) -> Panel:
    """A figure along an axis of the experiment: one line per arm, one dot per seed, and intervals where available.

    Args:
        title: of the panel.
        y_label: of the figure.
        rows: (arm, value of the axis, mean, interval or None, one figure a seed).
        x: the axis' values, in order.
        x_label: of the axis.
        numeric: whether the values are numbers; else they stand side by side.
        log: whether their logarithms are drawn.
        arms: all arms, for colours.
        zero: whether a line marks 0.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panel(title, x_label, y_label, 2.7)
        if log:
            axes.set_xscale("log")
        words = []
        for arm in dict.fromkeys(row[0] for row in rows):
            own = sorted(
                ((x.index(value), mean, span, seeds) for name, value, mean, span, seeds in rows if name == arm), key=lambda row: row[0]
            )
            at = [float(x[place]) if numeric else float(place) for place, *_ in own]
            colour, marker = arm_colour(arms, arm), _MARKERS[list(arms).index(arm) % 8]
            axes.plot(at, [mean for _, mean, _, _ in own], color=colour, label=arm, marker=marker, markersize=4.5)
            for place, (_, _, span, seeds) in zip(at, own, strict=True):
                if span is not None:
                    axes.plot([place, place], list(span), color=colour, linewidth=1.2)
                if len(seeds) > 1:
                    axes.plot([place] * len(seeds), list(seeds), linestyle="none", marker=marker, markersize=2.5, alpha=0.5, color=colour)
            words.append(f"{arm}: " + ", ".join(f"{x[place]} {mean:.1f}" for place, mean, _, _ in own))
        if zero:
            axes.axhline(0, color=_INK, linewidth=1.0)
        axes.set_xticks([float(value) for value in x] if numeric else range(len(x)), [f"{value}" for value in x])
        axes.minorticks_off()
        _legend(figure, axes)
        return Panel(svg=_svg(figure, f"{title} {x_label}"), caption="", alt=f"{title}, {y_label}, against {x_label}. {'; '.join(words)}.")


def forest(title: str, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], colours: Sequence[str], bold: int) -> Panel:
    """Differences with their intervals, one row each; the first `bold` rows are the declared endpoints."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panel(title, "difference in percentage points", "", 0.95 + 0.36 * len(rows))
        places = [-(n + (0.6 if 0 < bold <= n else 0)) for n in range(len(rows))]
        for place, row, colour, label, number in zip(places, rows, colours, labels, range(len(rows)), strict=True):
            if row["low"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=2.4 if number < bold else 1.4)
            axes.plot([100 * row["mean"]], [place], "D" if number < bold else "o", color=colour, markersize=5.5 if number < bold else 4.5)
            weight = "bold" if number < bold else "normal"
            axes.annotate(label, (0, place + 0.24), xycoords=("axes fraction", "data"), va="bottom", fontsize=8.8, fontweight=weight)
        axes.axvline(0, color=_INK, linewidth=1.0)
        axes.set_yticks([])
        axes.set_ylim(places[-1] - 0.5, 0.85)
        axes.spines["left"].set_visible(False)
        words = "; ".join(f"{label}: {points(row['mean'])} ({_span(row)})" for label, row in zip(labels, rows, strict=True))
        return Panel(svg=_svg(figure, title), caption="", alt=f"{title}, in percentage points with 95 % intervals. {words}.")


def slopes(
    title: str,
    stages: Sequence[str],
    series: Mapping[str, Sequence[Sequence[float | None]]],
    arms: Sequence[str],
    levels: Mapping[str, float],
) -> Panel:
    """A figure from stage to stage: one line per arm (mean over seeds) and one dot per seed.

    Args:
        title: of the panel.
        stages: names along x.
        series: arm -> one list a seed, one entry a stage (None: not measured).
        arms: all arms, for colours.
        levels: named horizontal lines (chance, pixel MSE).
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panel(title, "", "2AFC accuracy, %", 2.7)
        words = []
        for arm, seeds in series.items():
            table = np.array([[np.nan if value is None else 100 * value for value in seed] for seed in seeds], np.float64)
            known = [n for n in range(len(stages)) if np.isfinite(table[:, n]).any()]
            means = [float(np.nanmean(table[:, n])) for n in known]
            marker = _MARKERS[list(arms).index(arm) % 8]
            axes.plot(known, means, color=arm_colour(arms, arm), label=arm, marker=marker, markersize=5)
            if len(seeds) > 1:
                for seed in table:
                    axes.plot(
                        range(len(stages)), seed, linestyle="none", marker=marker, markersize=2.8, alpha=0.6, color=arm_colour(arms, arm)
                    )
            words.append(f"{arm}: " + ", ".join(f"{stages[n]} {mean:.1f} %" for n, mean in zip(known, means, strict=True)))
        _levels(axes, {name: 100 * level for name, level in levels.items()})
        words += [f"{name} {100 * level:.1f} %" for name, level in levels.items()]
        axes.set_xticks(range(len(stages)), [stage.replace(" ", "\n", 1) for stage in stages])
        axes.set_xlim(-0.25, len(stages) - 0.75)
        _legend(figure, axes)
        return Panel(svg=_svg(figure, title), caption="", alt=f"{title}. {'; '.join(words)}.")


def _panel(title: str, x_label: str, y_label: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, 36), pad=8)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(length=0)
    return figure, axes


def _double(axes: Axes, samples: Sequence[float]) -> None:
    """An x axis of samples that can show 0 and on which, from the first moment on, every doubling has the same width."""
    moments = sorted(set(samples))
    first = next((x for x in moments if x > 0), 1.0)
    axes.set_xscale("symlog", base=2, linthresh=first, linscale=0.5)
    axes.set_xlim(0, max(moments[-1], first) * 1.06)
    shown = [x for x in moments if x in (0, moments[-1]) or (x >= first and x <= moments[-1] / 1.5)]
    spread: list[float] = []
    for x in shown:  # as many as fit
        if not spread or x == moments[-1] or x >= 1.9 * spread[-1]:
            spread.append(x)
    axes.set_xticks(spread, [_count(x) for x in spread])
    axes.minorticks_off()


def _count(value: float) -> str:
    """A number of samples, short: 950, 1.5 k, 474 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _levels(axes: Axes, levels: Mapping[str, float]) -> None:
    """Named horizontal lines; names of (nearly) one level share a line."""
    shared: dict[float, list[str]] = {}
    for name, level in sorted(levels.items(), key=lambda item: item[1]):
        near = next((other for other in shared if abs(other - level) < 0.02 * max(abs(level), 1e-9)), level)
        shared.setdefault(near, []).append(name)
    for level, names in shared.items():
        axes.axhline(level, color=_MUTED, linestyle=":", linewidth=1.2)
        axes.annotate(", ".join(names), (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=_MUTED, fontsize=8.8)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(handles), 3), handlelength=1.6, columnspacing=1.4)


def _thin(x: Sequence[float], y: Sequence[float]) -> Curve:
    """At most about 200 points, each the mean of its neighbours: the page is not a log."""
    if len(x) <= _CURVE_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _CURVE_POINTS)
    return [float(np.mean(np.asarray(x)[part])) for part in parts], [float(np.mean(np.asarray(y)[part])) for part in parts]


def _curves_alt(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[Curve]]) -> str:
    words = []
    for arm, seeds in series.items():
        ends = [(y[0], y[-1]) for _, y in seeds if len(y)]
        if ends:
            first, last = np.mean(ends, axis=0)
            words.append(f"{arm} from {first:.3g} to {last:.3g}")
    return f"{title}: {y_label} against {x_label}. {'; '.join(words)}."


def _span(row: Mapping[str, Any]) -> str:
    return "no interval" if row["low"] is None else f"{points(row['low'])} to {points(row['high'])}"


def _svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element without an XML prologue, with the page's colours, unique ids, and no fixed size."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    width, height = (float(re.search(rf'<svg[^>]* {side}="([\d.]+)pt"', text)[1]) for side in ("width", "height"))  # type: ignore[index]
    text = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" aria-hidden="true">', text, count=1)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r" font-family: [^;\"]*;?", "", text)
    text = re.sub(r'"[^"]*"', lambda quoted: re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", quoted[0]), text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    return text.strip()
