"""The form of Kubeflow's UI: few names that sort by what they are about, and a guide that says all the rest."""

import re

import yaml

from pipelines.kubeflow.compiled import FOLDER
from pipelines.kubeflow.form import GUIDE, IN_FORM, NAMES, ONLY_IN_REQUEST, described
from pipelines.planning.parameters import default_in_words
from pipelines.planning.request import FIELDS, merge


def test_the_form_is_short_and_its_names_say_what_they_are_about():
    """Kubeflow sorts them alphabetically and shows nothing else."""
    names = list(described())

    assert len(names) <= 12
    assert names == sorted(NAMES.values())
    assert {name.partition("_")[0] for name in names} == {"data", "jobs", "request", "steps", "study"}


def test_nothing_on_the_form_is_called_as_kubeflows_own_fields_are():
    """Its form asks for a run's name, description, experiment and service account too."""
    theirs = {"pipeline", "version", "run", "name", "description", "experiment", "service_account", "recurring", "trigger"}

    assert not theirs & set(described())


def test_every_parameter_of_a_request_can_be_given_on_the_form_or_in_the_request():
    """And the guide names each, with its real default."""
    assert {*IN_FORM, *ONLY_IN_REQUEST} == set(FIELDS)
    for name in ONLY_IN_REQUEST:
        assert f"`{name}`" in GUIDE
    for name, item in IN_FORM.items():
        (line,) = [line for line in GUIDE.splitlines() if line.startswith(f"- `{NAMES[name]}`")]
        assert line.endswith(f"Default: {'firstsight' if name == 'profile' else default_in_words(item)}.")


def test_the_guides_examples_are_taken():
    """They are what people paste."""
    (pasted,) = re.findall(r"```\n(.*?)```", GUIDE, flags=re.DOTALL)
    keys = {form: name for name, form in NAMES.items()}
    given = {keys[name]: value for name, value in re.findall(r"`(\w+)` = `([^`]+)`", GUIDE)}

    request = merge(pasted, given)

    assert (request.recipe, request.nodes, request.seeds) == ("paper", 4, ("0", "1", "2"))
    assert request.placement == {"loader_workers": 12}
    assert set(yaml.safe_load(pasted)) & set(ONLY_IN_REQUEST)


def test_the_guide_is_what_kubeflow_shows_and_fits_into_an_address():
    """An upload passes it in its query; a tag in it would be taken for HTML."""
    compiled, _ = yaml.safe_load_all((FOLDER / "firstsight.yaml").read_text())

    assert compiled["pipelineInfo"]["description"] == GUIDE
    assert len(GUIDE) < 3000
    assert not re.search(r"<\w", GUIDE)
