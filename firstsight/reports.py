"""Read the report of an experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import InputError
from trainer.report.results import FORMAT_VERSION
from trainer.storage import join, layout
from trainer.storage.base import absolute
from trainer.storage.documents import read_document

_CHECKED_FROM = 2


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of an experiment, as shown on its report page.

    Attributes:
        uri: URI of the results.json that was read.
        experiment: name of the experiment.
        verdict: helped, hurt, mixed, not shown, one seed, or no answer.
        sentence: the answer in words, the page's first sentence.
        endpoints: the endpoints declared before the data were seen: `name`, `label`, `chance`, `sets` …
        scores: scores of every endpoint, arm and seed.
        contrasts: paired differences of arms with their intervals, one for each arm and endpoint.
        data: the data sets that it is based on: `what` (pairs, triplets, evaluation set), `name`, `uri`, `identity` …
        metrics: every metric of every evaluation, one row each: `arm`, `seed`, `stage`, `dataset`, `metric`, `value` …
        document: all of results.json, as trainer/report/results.schema.json describes it.
    """

    uri: str
    experiment: str
    verdict: str
    sentence: str
    endpoints: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, Any]]
    contrasts: Sequence[Mapping[str, Any]]
    data: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]
    document: Mapping[str, Any]


def read_report(uri: str) -> Report:
    """The report of an experiment.

    Args:
        uri: the experiment's folder, `<root>/experiments/<name>`, or a results.json.

    Raises:
        InputError: there is no report, or a newer firstsight wrote it.
        Corrupt: its checksum does not match its content.
    """
    place = absolute(uri)
    if not place.endswith(".json"):
        place = join(layout.report(place), "results.json")
    document = read_document(place, "a report", FORMAT_VERSION, checked_from=_CHECKED_FROM)
    if document is None:
        raise InputError(f"{place}: no report here: name an experiment's folder, and run `firstsight report --experiment` if it has none")
    return Report(
        uri=place,
        experiment=document["experiment"],
        verdict=document["answer"]["verdict"],
        sentence=document["answer"]["sentence"],
        endpoints=document["endpoints"],
        scores=document["scores"],
        contrasts=document["contrasts"],
        data=document["data"],
        metrics=document["metrics"],
        document=document,
    )
