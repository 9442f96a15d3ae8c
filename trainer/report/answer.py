"""The first sentence of the page: did it help, by how much, and how sure we are. It claims only what the paired test over seeds shows."""

from collections.abc import Sequence
from typing import Any

from trainer.arms import BASELINE, controls

_WORDS = (("better", "it beats"), ("worse", "it does worse than"))


def points(value: float) -> str:
    """A difference of scores in percentage points, `+2.1`, with a true minus sign."""
    text = f"{100 * value:+.1f}"
    if float(text) == 0:
        text = "0.0"
    return text.replace("-", "−")


def answer(contrasts: Sequence[dict[str, Any]], subject: str, judge: str) -> dict[str, Any]:
    """The verdict on `subject` against the baseline.

    Args:
        contrasts: rows of compare.contrasts.
        subject: the arm in question.
        judge: who judged the triplets; `FLIP` is named wherever a 2AFC score is given.

    Returns:
        {"verdict": helped | hurt | mixed | not shown | one seed | no answer, "sentence", "controls": a second sentence or
        nothing, "subject", "against"}.
    """
    rows = [row for row in contrasts if (row["arm"], row["against"]) == (subject, BASELINE)]
    if not rows:
        sentence = f"No answer yet: no seed has finished both the {subject or 'other'} arm and the {BASELINE} arm on the same sets."
        return {"verdict": "no answer", "sentence": sentence, "controls": "", "subject": subject, "against": BASELINE}
    verdict, sentence = _words(subject, _by_finding(rows), judge)
    return {
        "verdict": verdict,
        "sentence": sentence,
        "controls": against_controls(contrasts, subject),
        "subject": subject,
        "against": BASELINE,
    }


def against_controls(contrasts: Sequence[dict[str, Any]], subject: str) -> str:
    """One sentence on whether the answer still holds when the baseline is another kind of warm-up; empty if no control was run."""
    said: list[str] = []
    alike: list[str] = []
    single: list[str] = []
    for control in [arm.name for arm in controls()]:
        rows = [row for row in contrasts if (row["arm"], row["against"]) == (subject, control)]
        found = _by_finding(rows)
        parts = [f"{word} {control} on {_list([row['short'] for row in found[name]])}" for name, word in _WORDS if found[name]]
        if parts:
            said.append(_list(parts))
        elif rows:
            (single if found["one seed"] else alike).append(control)
    if alike:
        said.append(f"it shows no difference from {_list(alike, 'or')}")
    if single:
        said.append(f"one seed cannot tell it from {_list(single, 'or')}")
    return f"Against the controls: {'; '.join(said)}." if said else ""


def _by_finding(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for row in rows if row["finding"] == name] for name in ("better", "worse", "not shown", "one seed")}


def _words(subject: str, found: dict[str, list[dict[str, Any]]], judge: str) -> tuple[str, str]:
    every = [row for rows in found.values() for row in rows]
    said = {name: _list([_figure(row, judge, first=n == 0) for n, row in enumerate(rows)]) for name, rows in found.items()}
    seeds = f"over {max(len(row['seeds']) for row in every)} seeds"
    if found["one seed"]:
        return "one seed", f"One seed cannot say whether it helps; {_one_run(subject, found['one seed'], judge)}."
    corrected = f" once corrected for {len(every)} endpoints" if any(_excludes_zero(row) for row in found["not shown"]) else ""
    rest = (
        f"; no difference is shown{corrected} on {_list([_place(row, judge) for row in found['not shown']])}" if found["not shown"] else ""
    )
    if found["better"] and found["worse"]:
        both = f"{subject} beats {BASELINE} on some endpoints and loses to it on others"
        return "mixed", f"Mixed; {seeds}, {both}: {said['better']}, but {said['worse']}{rest}."
    if found["better"]:
        where = f"on {len(found['better'])} of {len(every)} endpoints" if rest else "on every endpoint"
        return "helped", f"Yes, {where}; {seeds}, {subject} beats {BASELINE}: {said['better']}{rest}."
    if found["worse"]:
        return "hurt", f"No, it hurt; {seeds}, {subject} does worse than {BASELINE}: {said['worse']}{rest}."
    return "not shown", f"Not shown; {seeds}, {subject} does not beat {BASELINE} beyond chance{corrected}: {said['not shown']}."


def _one_run(subject: str, rows: Sequence[dict[str, Any]], judge: str) -> str:
    """What one run shows: a difference counts only if its interval excludes 0, whatever the sign of the others."""
    clear: dict[str, list[dict[str, Any]]] = {"above": [], "below": []}
    for row in rows:
        if _excludes_zero(row):
            clear["above" if row["mean"] > 0 else "below"].append(row)
    rest = [row for row in rows if not _excludes_zero(row)]
    listed = _list([_figure(row, judge, first=n == 0) for n, row in enumerate([*clear["above"], *clear["below"], *rest])])
    only = "the intervals cover the sampling of test items only"
    if not clear["above"] and not clear["below"]:
        return f"in this one run no difference from {BASELINE} exceeds the sampling noise of the test items: {listed}"
    if len(rest) + min(len(clear["above"]), len(clear["below"])) == 0:
        return f"in this one run {subject} is {'above' if clear['above'] else 'below'} {BASELINE}: {listed}; {only}"
    parts = [f"{way} {BASELINE} on {_list([_where(row, judge) for row in found])}" for way, found in clear.items() if found]
    none = f", and no difference stands out on {_list([_where(row, judge) for row in rest])}" if rest else ""
    return f"in this one run {subject} is {_list(parts)}{none}: {listed}; {only}"


def _excludes_zero(row: dict[str, Any]) -> bool:
    """Whether a single interval lies on one side of 0, which is no finding before Holm."""
    return row["low"] is not None and (row["low"] > 0 or row["high"] < 0)


def _list(parts: Sequence[str], last: str = "and") -> str:
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}" if len(parts) > 1 else "".join(parts)


def _figure(row: dict[str, Any], judge: str, first: bool) -> str:
    """`+2.1 points on retrieval (95 % interval +0.8 to +3.4)`; the unit and the level are given once."""
    unit, level = (" points", "95 % interval ") if first else ("", "")
    interval = _no_interval(row) if row["low"] is None else f"{level}{points(row['low'])} to {points(row['high'])}"
    return f"{points(row['mean'])}{unit} on {_where(row, judge)} ({_n(row)}{interval})"


def _place(row: dict[str, Any], judge: str) -> str:
    """`retrieval (+0.3, −1.0 to +1.6)`, for an endpoint that shows no difference."""
    interval = f", {_no_interval(row)}" if row["low"] is None else f", {points(row['low'])} to {points(row['high'])}"
    return f"{_where(row, judge)} ({points(row['mean'])}{interval})"


def _n(row: dict[str, Any]) -> str:
    return f"{row['n']}; " if row.get("n") else ""


def _no_interval(row: dict[str, Any]) -> str:
    return f"no interval: {row['no_interval']}" if row.get("no_interval") else "no interval"


def _where(row: dict[str, Any], judge: str) -> str:
    return str(row["short"]) + (" as judged by FLIP" if row["endpoint"] == "2afc" and judge == "FLIP" else "")
