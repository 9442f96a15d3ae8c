"""The tables of the page and of its Markdown twin, as rows derived from results.json alone, with seeds averaged and endpoints in order."""

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.arms import BASELINE
from trainer.report.axes_view import axes_tables, steps_lines, tests_table
from trainer.report.items import RECALLS, RECALLS_ANY_TWIN
from trainer.report.representation import START, TOWER, by_layer
from trainer.report.trajectory import retained

Rows = list[dict[str, Any]]
_FIGURES = {"cka_start": "CKA to start", "cka_tower": "CKA to tower"}


def views(document: dict[str, Any]) -> dict[str, Any]:
    """Every table that both templates show.

    Args:
        document: the content of results.json.
    """
    subject = document["answer"]["subject"]
    pairs = [row for row in document["contrasts"] if row["against"] == BASELINE]
    cells = document["point"]["cells"]
    here = [row for row in metrics(document) if row["point"] == cells.get(row["arm"], "")]
    return {
        "table": paired(document),
        "metrics": here,
        "two_afc": [row | of_set(document, row["dataset"], "2afc", "accuracy") for row in document["two_afc"]],
        "others": [row for row in pairs if row["arm"] != subject],
        "controls": [row for row in document["contrasts"] if row["against"] != BASELINE],
        "signs": [row for row in document["sign_tests"] if row["arm"] == subject],
        "retrieval": retrieval(here),
        "ranks": feature_ranks(document["two_afc"]),
        "cost": cost(document["stages"]),
        "reached": reached(document["efficiency"]),
        "course": course(document),
        "onsets": onsets(document),
        "survival": survival(document),
        "layers": layers(document["representation"]),
        "layers_course": layers_through_time(document["representation"]),
        "elsewhere": [elsewhere(document, one) for one in document["at_points"]],
        "axes_tables": axes_tables(document),
        "tests_table": tests_table(document),
        "steps_lines": steps_lines(document),
    }


def paired(document: dict[str, Any]) -> Rows:
    """For each endpoint, the page's subject against the baseline of the same seeds, with chance, ceiling and other reference scores."""
    subject = document["answer"]["subject"]
    rows = []
    for endpoint in document["endpoints"]:
        against = [
            row for row in document["contrasts"] if (row["arm"], row["against"], row["endpoint"]) == (subject, BASELINE, endpoint["name"])
        ]
        alone = [row["value"] for row in document["scores"] if (row["arm"], row["endpoint"]) == (BASELINE, endpoint["name"])]
        found = document["beside"][endpoint["name"]]
        beside = dict(found["baselines"])
        if found["ceiling"] is not None and found["ceiling"] < 1:
            beside["highest possible score"] = found["ceiling"]
        rows.append({"endpoint": endpoint, "n": found["n"], "baseline": mean(alone), "arms": against, "beside": beside})
    return rows


def metrics(document: dict[str, Any]) -> Rows:
    """Every metric of every evaluation, with what its set provides: n, ceiling, baselines."""
    return [row | of_set(document, row["dataset"], row["task"], row["metric"]) for row in document["metrics"]]


def of_set(document: dict[str, Any], dataset: str, task: str, metric: str) -> dict[str, Any]:
    """How large a set is, the highest score any model can reach on a metric, and the baselines that need no model."""
    found = document["test_sets"][f"{dataset}_{task}"]
    return {"n": found["n"], "ceiling": found["ceiling"].get(metric), "baselines": found["baselines"].get(metric, {})}


def retrieval(metrics: Rows) -> Rows:
    """Recall of the final models: for each set its chance, its ceiling and one row per arm, in the order of RECALLS."""
    kinds = (RECALLS, RECALLS_ANY_TWIN)
    final = [row for row in metrics if row["final"] and row["task"] == "zeroshot_retrieval"]
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in final):
        own = [row for row in final if row["dataset"] == dataset]
        arms = []
        for arm in dict.fromkeys(row["arm"] for row in own):
            found = [row for row in own if row["arm"] == arm]
            seeds = sorted({row["seed"] for row in found})
            values, any_twin = ([mean(row["value"] for row in found if row["metric"] == name) for name in names] for names in kinds)
            arms.append({"arm": arm, "seeds": seeds, "values": values, "any_twin": any_twin})
        chance, ceiling = (
            [next((r[what] for r in own if r["metric"] == name), None) for name in RECALLS] for what in ("chance", "ceiling")
        )
        twins = any(most is not None and most < 1 for most in ceiling)
        tables.append(
            {
                "dataset": dataset,
                "num_items": own[0]["num_items"],
                "n": own[0]["n"],
                "chance": chance,
                "ceiling": ceiling,
                "twins": twins,
                "arms": arms,
            }
        )
    return tables


def feature_ranks(two_afc: Rows) -> Rows:
    """Effective rank of the references' features on the first triplets: of each arm's tower after stage 1, and untrained."""
    rows = [row for row in two_afc if row["dataset"] == two_afc[0]["dataset"] and row["feature_rank"] is not None]
    towers = [row for row in rows if row["stage"] == "perceptual"]
    if not towers:
        return []
    named = [(arm, [row for row in towers if row["arm"] == arm]) for arm in dict.fromkeys(row["arm"] for row in towers)]
    named.append(("untrained", [row for row in rows if row["stage"] == "untrained"]))
    return [{"name": name, "rank": mean(row["feature_rank"] for row in found)} for name, found in named if found]


def cost(stages: Rows) -> Rows:
    """Throughput and time of each stage of each arm, averaged over its seeds."""
    averaged = ("samples_per_second", "data_wait_fraction", "seconds", "final_loss")
    rows = []
    for stage, arm, point in dict.fromkeys((row["stage"], row["arm"], row["point"]) for row in stages):
        runs = [row for row in stages if (row["stage"], row["arm"], row["point"]) == (stage, arm, point)]
        devices = dict.fromkeys(f"{run['device'] or '–'}{_times(run['world_size'])}" for run in runs)
        row = {
            "stage": stage,
            "arm": f"{arm}, {point}" if point else arm,
            "seeds": [run["seed"] for run in runs],
            "device": ", ".join(devices),
        }
        rows.append(row | {"steps": runs[0]["steps"]} | {name: mean(run[name] for run in runs) for name in averaged})
    return rows


def _times(world_size: int | None) -> str:
    return f" × {world_size}" if world_size and world_size > 1 else ""


def reached(efficiency: Rows) -> Rows:
    """For each arm, in how many seeds the baseline's final score was reached, when, and at what cost (means of those seeds)."""
    followed = [row for row in efficiency if row["followed_through_time"]]
    rows = []
    for arm in dict.fromkeys(row["arm"] for row in followed):
        runs = [row for row in followed if row["arm"] == arm]
        there = [run for run in runs if run["epoch_of_baseline_final"] is not None]
        row = {"arm": arm, "seeds": len(runs), "reached": len(there)}
        row["epoch"] = mean(run["epoch_of_baseline_final"] for run in there)
        row["hours"] = mean(run["device_hours_to_baseline_final"] for run in there)
        rows.append(
            row | {name: mean(run[name] for run in runs) for name in ("baseline_final", "stage_1_device_hours", "stage_2_device_hours")}
        )
    return rows


def elsewhere(document: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """Over training and by layer at another point of the axes: the tables of that section, and the values that the template reads."""
    there = document | one
    tables = {"course": course(there), "onsets": onsets(there), "survival": survival(there)}
    tables |= {"layers": layers(one["representation"]), "layers_course": layers_through_time(one["representation"])}
    return {**one, **tables}


def course(document: dict[str, Any]) -> Rows:
    """Endpoint by endpoint: the arms as columns, one row per evaluated epoch, means over seeds."""
    tables = []
    for endpoint in document["endpoints"]:
        rows = [row for row in document["through_time"] if row["endpoint"] == endpoint["name"]]
        arms = list(dict.fromkeys(row["arm"] for row in rows))
        epochs = sorted({round(row["epoch"], 6) for row in rows})
        table = [
            {
                "epoch": epoch,
                "values": [mean(r["value"] for r in rows if r["arm"] == arm and round(r["epoch"], 6) == epoch) for arm in arms],
            }
            for epoch in epochs
        ]
        if table:
            tables.append({"label": endpoint["label"], "arms": arms, "rows": table})
    return tables


def onsets(document: dict[str, Any]) -> Rows:
    """Each pair and endpoint that was followed, with the onset and its interval in words."""
    return [row | {"at": _onset_at(row), "interval": _onset_interval(row)} for row in document["trajectory"]["onsets"]]


def _onset_at(row: dict[str, Any]) -> str:
    if row["epoch"] is None:
        return "not reached"
    after = "" if row["after"] is None else f", not yet at {row['after']:.3g}"
    return f"epoch {row['epoch']:.3g}{after}"


def _onset_interval(row: dict[str, Any]) -> str:
    low, high = ("not reached" if row[end] is None else f"epoch {row[end]:.3g}" for end in ("low", "high"))
    return low if low == high else f"{low} to {high}"


def survival(document: dict[str, Any]) -> Rows:
    """How much of the prior remains at each moment, by arm, means over seeds."""
    rows = document["trajectory"]["survival"]
    averaged = ("accuracy", "untrained", "tower", "start_cosine")
    table = []
    for arm, epoch in dict.fromkeys((row["arm"], round(row["epoch"], 6)) for row in rows):
        own = [row for row in rows if (row["arm"], round(row["epoch"], 6)) == (arm, epoch)]
        means = {key: mean(row[key] for row in own) for key in averaged}
        left = retained(means["accuracy"], means["untrained"], means["tower"])
        table.append({"arm": arm, "epoch": epoch, "samples": own[0]["samples"], "retained": left, **means})
    return table


def layers(representation: dict[str, Any]) -> Rows:
    """Tables by layer: CKA to start and tower, CKA between arms, and RSA, as far as they were measured."""
    alike, rsa = representation["similarity"], representation["rsa"]
    start = [row for row in alike if row["to"] == START or row["to"].startswith(TOWER)]
    arms = [row for row in alike if row not in start]
    tables: Rows = []
    for kind, rows, words in (("start", start, "{} to {}"), ("arms", arms, "{} and {}")):
        for table in by_layer(rows, "arm", "to"):
            tables.append({**table, "kind": kind, "rdm": "", "columns": [words.format(*names) for names in table["columns"]]})
    for rdm in dict.fromkeys(row["rdm"] for row in rsa):
        found = by_layer([row for row in rsa if row["rdm"] == rdm], "model")
        tables += [{**table, "kind": "rsa", "rdm": rdm, "columns": [model for (model,) in table["columns"]]} for table in found]
    return tables


def layers_through_time(representation: dict[str, Any]) -> Rows:
    """For each set, a table of the figures of the layer `output`: one row per epoch, one column per arm and figure, means over seeds."""
    tables = []
    rows = [row for row in representation["through_time"] if row["layer"] == "output"]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        own = [row for row in rows if row["dataset"] == dataset]
        columns = list(dict.fromkeys((row["figure"], row["arm"]) for row in own))
        columns.sort(key=lambda column: column[0])
        lines = [
            {
                "epoch": epoch,
                "values": [
                    mean(row["value"] for row in own if (row["figure"], row["arm"], round(row["epoch"], 6)) == (*column, epoch))
                    for column in columns
                ],
            }
            for epoch in sorted({round(row["epoch"], 6) for row in own})
        ]
        tables.append({"dataset": dataset, "columns": [f"{arm}, {_FIGURES.get(name, name)}" for name, arm in columns], "rows": lines})
    return tables


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values; None if there are none."""
    known: Sequence[float] = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
