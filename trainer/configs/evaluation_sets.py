"""The sets that the field reports: 29 for zero-shot classification, two for retrieval, one more variant.

Sizes are those of the field's usual test splits (CLIP, VTAB), for a warning where a copy differs; they were written
down from memory and no figure depends on them. `prompts` is the name under which CLIP_benchmark keeps the set's
prompts. Licence notes are a pointer for people, not advice: read the source's own terms.
"""

from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import InputError

Task = Literal["zeroshot_classification", "zeroshot_retrieval"]
Metric = Literal["acc1", "mean_per_class_recall", "mean_average_precision", "recall"]

RESEARCH = "non-commercial research only"
UNSTATED = "pictures from the web, rights with their owners"
CREATIVE_COMMONS = "Creative Commons, picture by picture"
KITTI = "kitti_closest_vehicle_distance"


@dataclass(frozen=True, kw_only=True)
class EvaluationSetFacts:
    """One set as the field knows it.

    Attributes:
        name: ours: in commands, folders and results.
        title: for people.
        metric: what is reported of it (CLIP's choice).
        classes: number of classes; 0 for retrieval.
        test_size: images of the usual test split.
        source: who publishes it.
        licence: note.
        prompts: CLIP_benchmark's name of its class names and templates; empty for retrieval.
        counted: whether it is one of the 29.
        task: what it measures.
    """

    name: str
    title: str
    metric: Metric
    classes: int
    test_size: int
    source: str
    licence: str
    prompts: str
    counted: bool = True
    task: Task = "zeroshot_classification"


def _set(*columns: Any) -> EvaluationSetFacts:
    """A zero-shot set of one label an image that counts."""
    names = ("name", "title", "metric", "classes", "test_size", "source", "licence", "prompts")
    return EvaluationSetFacts(**dict(zip(names, columns, strict=True)))


SETS: tuple[EvaluationSetFacts, ...] = (
    _set("imagenet-1k", "ImageNet-1K", "acc1", 1000, 50_000, "image-net.org, validation", RESEARCH, "imagenet1k"),
    _set("imagenet-v2", "ImageNet-V2", "acc1", 1000, 10_000, "Recht et al. 2019, matched frequency", UNSTATED, "imagenet1k"),
    _set("imagenet-a", "ImageNet-A", "acc1", 200, 7_500, "Hendrycks et al. 2019", UNSTATED, "imagenet1k"),
    _set("imagenet-r", "ImageNet-R", "acc1", 200, 30_000, "Hendrycks et al. 2020", UNSTATED, "imagenet1k"),
    _set("imagenet-sketch", "ImageNet-Sketch", "acc1", 1000, 50_889, "Wang et al. 2019", UNSTATED, "imagenet1k"),
    _set("cifar-10", "CIFAR-10", "acc1", 10, 10_000, "Krizhevsky 2009", UNSTATED, "cifar10"),
    _set("cifar-100", "CIFAR-100", "acc1", 100, 10_000, "Krizhevsky 2009", UNSTATED, "cifar100"),
    _set("caltech-101", "Caltech-101", "mean_per_class_recall", 102, 6_084, "Fei-Fei et al. 2004, VTAB's split", "CC BY 4.0", "caltech101"),
    _set("dtd", "DTD", "acc1", 47, 1_880, "Cimpoi et al. 2014, split 1", RESEARCH, "dtd"),
    _set("eurosat", "EuroSAT", "acc1", 10, 5_400, "Helber et al. 2019, VTAB's split", "MIT", "eurosat"),
    _set("flowers-102", "Flowers", "mean_per_class_recall", 102, 6_149, "Nilsback and Zisserman 2008", UNSTATED, "flowers"),
    _set("pets", "Oxford-IIIT Pets", "mean_per_class_recall", 37, 3_669, "Parkhi et al. 2012", "CC BY-SA 4.0", "pets"),
    _set("svhn", "SVHN", "acc1", 10, 26_032, "Netzer et al. 2011", RESEARCH, "svhn"),
    _set("resisc45", "RESISC45", "acc1", 45, 6_300, "Cheng et al. 2017, VTAB's split", RESEARCH, "resisc45"),
    _set("pcam", "PCam", "acc1", 2, 32_768, "Veeling et al. 2018", "CC0", "pcam"),
    _set("clevr-count", "CLEVR-Count", "acc1", 8, 15_000, "Johnson et al. 2017, validation, as VTAB", "CC BY 4.0", "clevr_count_all"),
    _set("clevr-dist", "CLEVR-Dist", "acc1", 6, 15_000, "as above", "CC BY 4.0", "clevr_closest_object_distance"),
    _set("cars", "Stanford Cars", "acc1", 196, 8_041, "Krause et al. 2013", RESEARCH, "cars"),
    _set("aircraft", "FGVC Aircraft", "mean_per_class_recall", 100, 3_333, "Maji et al. 2013", RESEARCH, "fgvc_aircraft"),
    _set("food-101", "Food-101", "acc1", 101, 25_250, "Bossard et al. 2014", UNSTATED, "food101"),
    _set("sun397", "SUN397", "acc1", 397, 21_750, "Xiao et al. 2010", RESEARCH, "sun397"),
    _set("birdsnap", "Birdsnap", "acc1", 500, 2_149, "Berg et al. 2014 (what is left of its links)", UNSTATED, "birdsnap"),
    _set("country211", "Country211", "acc1", 211, 21_100, "Radford et al. 2021, from YFCC100M", CREATIVE_COMMONS, "country211"),
    _set("mnist", "MNIST", "acc1", 10, 10_000, "LeCun et al. 1998", "CC BY-SA 3.0", "mnist"),
    _set("stl-10", "STL-10", "acc1", 10, 8_000, "Coates et al. 2011", RESEARCH, "stl10"),
    _set("gtsrb", "GTSRB", "acc1", 43, 12_630, "Stallkamp et al. 2011", RESEARCH, "gtsrb"),
    _set("kitti-distance", "KITTI distance", "acc1", 4, 711, "Geiger et al. 2012, VTAB's split", "CC BY-NC-SA 3.0", KITTI),
    _set("rendered-sst2", "Rendered SST2", "acc1", 2, 1_821, "Radford et al. 2021", UNSTATED, "renderedsst2"),
    _set("voc2007", "VOC2007, cropped objects", "acc1", 20, 14_976, "Everingham et al. 2007", UNSTATED, "voc2007"),
    EvaluationSetFacts(
        name="voc2007-multilabel", title="VOC2007, multi-label", metric="mean_average_precision", classes=20, test_size=4_952,
        source="Everingham et al. 2007", licence=UNSTATED, prompts="voc2007_multilabel", counted=False,
    ),
    EvaluationSetFacts(
        name="coco-retrieval", title="COCO 2014, Karpathy's 5k", metric="recall", classes=0, test_size=5_000,
        source="Lin et al. 2014", licence="captions CC BY 4.0; " + UNSTATED, prompts="", counted=False, task="zeroshot_retrieval",
    ),
    EvaluationSetFacts(
        name="flickr30k-retrieval", title="Flickr30k, Karpathy's 1k", metric="recall", classes=0, test_size=1_000,
        source="Young et al. 2014", licence=RESEARCH, prompts="", counted=False, task="zeroshot_retrieval",
    ),
)  # fmt: skip
"""Both variants of VOC2007 are listed, one is counted."""


def find_set(name: str) -> EvaluationSetFacts:
    """The set of this name; InputError naming the nearest where there is none."""
    for known in SETS:
        if known.name == name:
            return known
    import difflib

    names = [known.name for known in SETS]
    near = difflib.get_close_matches(name, names, 3) or names
    raise InputError(f"no evaluation set is called {name!r}: {' or '.join(near[:3]) if near != names else 'see `stage eval list`'}")
