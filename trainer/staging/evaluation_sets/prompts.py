"""Class names and prompt templates of an evaluation set.

Results change by 2 to 8 points with them, so the standard ones should be used: CLIP_benchmark keeps them in two JSON files of
its package (clip_benchmark/datasets/en_classnames.json and en_zeroshot_classification_templates.json), and
`--prompts <that folder>` reads them. Without it the copy's own names and plain templates are used, and the manifest
says so: such figures are comparable between the arms of an experiment, but not with published ones.
"""

from dataclasses import dataclass

from trainer.bounds import MAX_COPY_FILE_BYTES, MAX_TEMPLATES, parse_json
from trainer.configs.evaluation_sets import EvaluationSetFacts
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted
from trainer.staging.foreign import shown, without_surrogates
from trainer.storage import join, read_bytes

PLAIN = ("{c}", "a photo of a {c}.")
BIRDS = ("a photo of a {c}, a type of bird.",)
"""CLIP's template for Birdsnap, which CLIP_benchmark does not have."""

NAMES_FILE = "en_classnames.json"
TEMPLATES_FILE = "en_zeroshot_classification_templates.json"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Names by label, templates with `{c}`, and where they are from: `copy`, `plain`, or the folder's URI."""

    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    origin: str


def choose(facts: EvaluationSetFacts, converted: Converted, folder: str) -> Prompts:
    """The prompts of a classification set.

    Args:
        facts: description of the set.
        converted: names and templates of the copy, if it has any.
        folder: folder of the two JSON files; empty for none.

    Raises:
        InputError: no names were found, or their number differs from the copy's number of classes.
    """
    names, templates, origin = converted.classnames, converted.templates, "copy" if converted.templates else "plain"
    if folder:
        names = _read(folder, NAMES_FILE, facts.prompts) or names
        if len(converted.classnames) == 200 and facts.prompts == "imagenet1k":
            names = converted.classnames  # ImageNet-A and -R: the 200 that the copy has
        templates = _read(folder, TEMPLATES_FILE, facts.prompts) or (BIRDS if facts.prompts == "birdsnap" else ())
        if not templates:
            raise InputError(f"{join(folder, TEMPLATES_FILE)}: no templates for {facts.prompts}")
        origin = folder
    if not names:
        raise InputError(
            f"{facts.name}: its copy names no classes; give --prompts the folder of CLIP_benchmark's {NAMES_FILE} and {TEMPLATES_FILE}"
        )
    if len(templates) > MAX_TEMPLATES:
        raise InputError(f"{facts.name}: {len(templates)} templates from {origin}, but at most {MAX_TEMPLATES} are read")
    if len(names) != facts.classes:
        raise InputError(f"{facts.name}: {len(names)} class names from {origin}, but the set has {facts.classes} classes")
    return Prompts(classnames=names, templates=templates or PLAIN, origin=origin)


def _read(folder: str, file: str, name: str) -> tuple[str, ...]:
    """The entry of a set in a file of CLIP_benchmark; empty if there is none."""
    uri = join(folder, file)
    content = parse_json(read_bytes(uri), uri, most=MAX_COPY_FILE_BYTES)
    texts = content.get(name, []) if isinstance(content, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{uri}: must be an object with a list of texts for {name!r}, got {shown(content if texts is None else texts)}")
    return tuple(without_surrogates(text) for text in texts)
