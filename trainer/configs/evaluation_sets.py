"""The sets that the field reports: 29 for zero-shot classification, two for retrieval, one more variant.

Sizes are those of the field's usual test splits, for a warning where a copy differs, each with where it was read
(SIZE_SOURCES). `prompts` is the name under which CLIP_benchmark keeps the set's prompts. Licence notes say in brackets
where they were read, and are a pointer for people, not advice: read the source's own terms.
"""

from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import InputError

Task = Literal["zeroshot_classification", "zeroshot_retrieval"]
Metric = Literal["acc1", "mean_per_class_recall", "mean_average_precision", "recall"]

SIZE_SOURCES = {
    "DataComp": "mlfoundations/datacomp, tasklist.yml at 2d7bde7c28a9 (size, num_classes)",
    "RealSyn": "arXiv 2502.12513, table 8 (test size, classes)",
    "TFDS": "tensorflow/datasets, docs/catalog/voc.md, voc/2007 (split test)",
    "nlphuji": "data set nlphuji/flickr_1k_test_image_text_retrieval (Karpathy's 1k)",
}
"""Where the sizes and the numbers of classes were read."""

_LICENCES = {
    "imagenet-1k": "non-commercial research (as its mirrors say)",
    "cifar-100": "no licence stated (card uoft-cs/cifar100)",
    "caltech-101": "CC BY 4.0 (card HuggingFaceM4/Caltech-101)",
    "dtd": "no licence stated (mteb's task list)",
    "eurosat": "MIT (card torchgeo/eurosat)",
    "pets": "CC BY-SA 4.0 (card timm/oxford-iiit-pet)",
    "pcam": "CC0 (basveeling/pcam, README)",
    "clevr-count": "CC BY 4.0 (mteb's task list)",
    "clevr-dist": "CC BY 4.0 (mteb's task list)",
    "aircraft": "non-commercial research (its README)",
    "birdsnap": "no licence stated (mteb's task list)",
    "country211": "Creative Commons, picture by picture (openai/CLIP, data/country211.md)",
    "mnist": "MIT (its Hugging Face card)",
}
"""Notes with where they were read; of the others the terms were not looked up."""
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
        prompts: CLIP_benchmark's name of its class names and templates; empty for retrieval.
        size_from: key of SIZE_SOURCES.
        counted: whether it is one of the 29.
        task: what it measures.
    """

    name: str
    title: str
    metric: Metric
    classes: int
    test_size: int
    source: str
    prompts: str
    size_from: str = "DataComp"
    counted: bool = True
    task: Task = "zeroshot_classification"

    @property
    def licence(self) -> str:
        """A note for people, with where it was read."""
        return _LICENCES.get(self.name, "terms not looked up")


def _set(*columns: Any, size_from: str = "DataComp") -> EvaluationSetFacts:
    """A zero-shot set of one label an image that counts."""
    names = ("name", "title", "metric", "classes", "test_size", "source", "prompts")
    return EvaluationSetFacts(**dict(zip(names, columns, strict=True)), size_from=size_from)


SETS: tuple[EvaluationSetFacts, ...] = (
    _set("imagenet-1k", "ImageNet-1K", "acc1", 1000, 50_000, "image-net.org, validation", "imagenet1k"),
    _set("imagenet-v2", "ImageNet-V2", "acc1", 1000, 10_000, "Recht et al. 2019, matched frequency", "imagenet1k"),
    _set("imagenet-a", "ImageNet-A", "acc1", 200, 7_500, "Hendrycks et al. 2019", "imagenet1k"),
    _set("imagenet-r", "ImageNet-R", "acc1", 200, 30_000, "Hendrycks et al. 2020", "imagenet1k"),
    _set("imagenet-sketch", "ImageNet-Sketch", "acc1", 1000, 50_889, "Wang et al. 2019", "imagenet1k"),
    _set("cifar-10", "CIFAR-10", "acc1", 10, 10_000, "Krizhevsky 2009", "cifar10"),
    _set("cifar-100", "CIFAR-100", "acc1", 100, 10_000, "Krizhevsky 2009", "cifar100"),
    _set("caltech-101", "Caltech-101", "mean_per_class_recall", 102, 6_085, "Fei-Fei et al. 2004, VTAB's split", "caltech101"),
    _set("dtd", "DTD", "acc1", 47, 1_880, "Cimpoi et al. 2014, split 1", "dtd"),
    _set("eurosat", "EuroSAT", "acc1", 10, 5_400, "Helber et al. 2019, VTAB's split", "eurosat"),
    _set("flowers-102", "Flowers", "mean_per_class_recall", 102, 6_149, "Nilsback and Zisserman 2008", "flowers"),
    _set("pets", "Oxford-IIIT Pets", "mean_per_class_recall", 37, 3_669, "Parkhi et al. 2012", "pets"),
    _set("svhn", "SVHN", "acc1", 10, 26_032, "Netzer et al. 2011", "svhn"),
    _set("resisc45", "RESISC45", "acc1", 45, 6_300, "Cheng et al. 2017, VTAB's split", "resisc45"),
    _set("pcam", "PCam", "acc1", 2, 32_768, "Veeling et al. 2018", "pcam"),
    _set("clevr-count", "CLEVR-Count", "acc1", 8, 15_000, "Johnson et al. 2017, validation, as VTAB", "clevr_count_all"),
    _set("clevr-dist", "CLEVR-Dist", "acc1", 6, 15_000, "as above", "clevr_closest_object_distance"),
    _set("cars", "Stanford Cars", "acc1", 196, 8_041, "Krause et al. 2013", "cars"),
    _set("aircraft", "FGVC Aircraft", "mean_per_class_recall", 100, 3_333, "Maji et al. 2013", "fgvc_aircraft"),
    _set("food-101", "Food-101", "acc1", 101, 25_250, "Bossard et al. 2014", "food101"),
    _set("sun397", "SUN397", "acc1", 397, 19_850, "Xiao et al. 2010, partition 1", "sun397", size_from="RealSyn"),
    _set("birdsnap", "Birdsnap", "acc1", 500, 2_149, "Berg et al. 2014 (what is left of its links)", "birdsnap", size_from="RealSyn"),
    _set("country211", "Country211", "acc1", 211, 21_100, "Radford et al. 2021, from YFCC100M", "country211"),
    _set("mnist", "MNIST", "acc1", 10, 10_000, "LeCun et al. 1998", "mnist"),
    _set("stl-10", "STL-10", "acc1", 10, 8_000, "Coates et al. 2011", "stl10"),
    _set("gtsrb", "GTSRB", "acc1", 43, 12_630, "Stallkamp et al. 2011", "gtsrb"),
    _set("kitti-distance", "KITTI distance", "acc1", 4, 711, "Geiger et al. 2012, VTAB's split", KITTI),
    _set("rendered-sst2", "Rendered SST2", "acc1", 2, 1_821, "Radford et al. 2021", "renderedsst2"),
    _set("voc2007", "VOC2007, cropped objects", "acc1", 20, 14_976, "Everingham et al. 2007", "voc2007"),
    EvaluationSetFacts(
        name="voc2007-multilabel", title="VOC2007, multi-label", metric="mean_average_precision", classes=20, test_size=4_952,
        source="Everingham et al. 2007", prompts="voc2007_multilabel", size_from="TFDS", counted=False,
    ),
    EvaluationSetFacts(
        name="coco-retrieval", title="COCO 2014, Karpathy's 5k", metric="recall", classes=0, test_size=5_000,
        source="Lin et al. 2014", prompts="", counted=False, task="zeroshot_retrieval",
    ),
    EvaluationSetFacts(
        name="flickr30k-retrieval", title="Flickr30k, Karpathy's 1k", metric="recall", classes=0, test_size=1_000,
        source="Young et al. 2014", prompts="", size_from="nlphuji", counted=False, task="zeroshot_retrieval",
    ),
)  # fmt: skip
"""Both variants of VOC2007 are listed, one is counted."""

FAMILIES = {
    "ImageNet": ("imagenet-1k",),
    "OOD": ("imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch"),
    "VTAB": (
        "cifar-10", "cifar-100", "caltech-101", "dtd", "eurosat", "flowers-102", "pets", "svhn", "resisc45", "pcam", "clevr-count",
        "clevr-dist",
    ),
    "fine-grained": ("cars", "aircraft", "food-101", "sun397", "birdsnap", "country211"),
    "misc.": ("mnist", "stl-10", "gtsrb", "kitti-distance", "rendered-sst2", "voc2007"),
}  # fmt: skip
"""The 29 by the families over which the paper takes means: 1, 4, 12, 6 and 6."""


def find_set(name: str) -> EvaluationSetFacts:
    """The set of this name; InputError naming the nearest if there is none."""
    for known in SETS:
        if known.name == name:
            return known
    import difflib

    names = [known.name for known in SETS]
    near = difflib.get_close_matches(name, names, 3) or names
    raise InputError(f"no evaluation set is called {name!r}: {' or '.join(near[:3]) if near != names else 'see `stage eval list`'}")
