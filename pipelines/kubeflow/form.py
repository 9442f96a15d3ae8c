"""The form that Kubeflow shows before a run: the parameters of the pipeline, and the guide that stands in its description.

The form lists names alphabetically, with their defaults and no descriptions. So it has few parameters, whose names sort by what they
are about; what is rarely needed goes into `request`. Which parameter of a request is in the form, and under which name, stands in
pipelines/planning/request.py.
"""

import html

from pipelines.planning.parameters import Parameter, default_in_words
from pipelines.planning.request import FIELDS

REQUEST = "request"
TOLERATIONS = "steps_tolerations"
PROFILE = "firstsight"
"""Default of `jobs_profile`: its ConfigMap is mounted into every step, so it needs a name."""
IN_FORM = {name: item for name, item in FIELDS.items() if item.metadata["form"]}
"""The parameters of a request that the form has too, by their names in a request."""
ONLY_IN_REQUEST = [name for name in FIELDS if name not in IN_FORM]
NAMES = {name: str(item.metadata["form"]) for name, item in IN_FORM.items()} | {REQUEST: REQUEST, "tolerations": TOLERATIONS}
"""Name in the form by name in a request, and of what only Kubeflow needs."""
_REQUEST_HELP = "a request file's URI, or its YAML; what is given beside it wins."
_TOLERATIONS_HELP = "JSON list of tolerations of the steps' own small pods; those of the jobs are in the profile."


def described() -> dict[str, str]:
    """What each parameter of the form is, by its name there, in the form's order."""
    said = {NAMES[name]: f"{item.metadata['help']}. Default: {shown_default(name, item)}." for name, item in IN_FORM.items()}
    return dict(sorted((said | {REQUEST: _REQUEST_HELP, TOLERATIONS: _TOLERATIONS_HELP}).items()))


def shown_default(name: str, item: Parameter) -> str:
    """What holds where a field of the form is empty."""
    return PROFILE if name == "profile" else default_in_words(item)


def _guide() -> str:
    lines = [f"- `{name}`: {html.escape(text, quote=False)}" for name, text in described().items()]
    return "\n".join(
        [
            "Trains CLIP's vision tower on human similarity judgements, then CLIP on image-text pairs, and reports in pairs "
            "([the paper](https://arxiv.org/abs/2505.14204)) whether it helped.",
            "",
            "*Create run* works with every field as it is: the demo, minutes on CPUs. **An empty field is not given**: then "
            "the value in `request` holds, else the default below.",
            "",
            *lines,
            "",
            "A *study* is what firstsight's documentation calls an experiment: arms x seeds under one name. Kubeflow's own "
            "*Experiment* only groups runs in this UI.",
            "",
            "**Example**: `study_recipe` = `paper`, `study_arms` = `random,perceptual`, `study_seeds` = `0,1,2`, `jobs_nodes` = `4`.",
            "",
            f"**Everything else** goes into `request`: {', '.join(f'`{name}`' for name in ONLY_IN_REQUEST)}. As YAML:",
            "",
            "```",
            "recipe: paper",
            "resume: never",
            "placement: {loader_workers: 12}",
            "```",
            "",
            "The first step checks all of it within half a minute and links to dashboard, bucket and report. "
            "To resume after a failure, *Retry*, or run the same study again: finished stages are found. "
            "More: docs/KUBEFLOW.md and docs/REQUEST.md of firstsight.",
        ]
    )


GUIDE = _guide()
"""Markdown, which the list of pipelines and the pipeline's page show."""
