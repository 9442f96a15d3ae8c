"""The form that Kubeflow shows before a run: the parameters of the pipeline, and the guide in its description.

The form lists names alphabetically, with their defaults and no descriptions. So it has few parameters, whose names sort by what they
are about; what is rarely needed goes into `request`. Which parameter of a request is in the form, and under which name, is defined in
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
"""The request parameters that are also in the form, by their names in a request."""
ONLY_IN_REQUEST = [name for name in FIELDS if name not in IN_FORM]
NAMES = {name: str(item.metadata["form"]) for name, item in IN_FORM.items()} | {REQUEST: REQUEST, "tolerations": TOLERATIONS}
"""Maps names in a request, and of what only Kubeflow needs, to names in the form."""
_REQUEST_HELP = "a request file's URI, or its YAML; values given in other fields override it."
_TOLERATIONS_HELP = "JSON list of tolerations for the steps' own small pods; those for the jobs are in the profile."


def described() -> dict[str, str]:
    """The description of each parameter of the form, by its name in the form, in the form's order."""
    said = {NAMES[name]: f"{item.metadata['help']}. Default: {shown_default(name, item)}." for name, item in IN_FORM.items()}
    return dict(sorted((said | {REQUEST: _REQUEST_HELP, TOLERATIONS: _TOLERATIONS_HELP}).items()))


def shown_default(name: str, item: Parameter) -> str:
    """The value used if a field of the form is empty."""
    return PROFILE if name == "profile" else default_in_words(item)


def _guide() -> str:
    lines = [f"- `{name}`: {html.escape(text, quote=False)}" for name, text in described().items()]
    return "\n".join(
        [
            "Trains CLIP's vision tower on human similarity judgements, then CLIP on image-text pairs, and reports, with paired "
            "comparisons, whether it helped ([the paper](https://arxiv.org/abs/2505.14204)).",
            "",
            "*Create run* works with every field left as is: it runs the demo, in minutes on CPUs. **An empty field counts as not given**: "
            "the value in `request` is used, otherwise the default below.",
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
            "The first step checks all of this within half a minute and links to the dashboard, bucket and report. "
            "To resume after a failure, click *Retry* or run the same study again: finished stages are reused. "
            "More: docs/KUBEFLOW.md and docs/REQUEST.md of firstsight.",
        ]
    )


GUIDE = _guide()
"""Markdown shown in the list of pipelines and on the pipeline's page."""
