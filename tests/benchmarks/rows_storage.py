"""Row T: fetching a list of URLs, decoding, resizing and encoding, against img2dataset on the same server."""

import contextlib
import json
import sys
from pathlib import Path

from tests.benchmarks.harness import Measured, answer_of, interleaved, row, server_of
from tests.benchmarks.photos import photos
from tests.reference import reference_python
from tests.staging.remote.web import web_server

IMAGES, DISTINCT = 1200, 100


@row(
    "T",
    what="`stage fetch` of URLs to short side 256, q90, against img2dataset on the same server",
    unit="images / CPU-s",
    target=1.2,
)
def fetching(folder: Path) -> Measured:
    """Both make the short side 256 and encode at quality 90; ours resamples bicubic with antialiasing, img2dataset by area."""
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(web_server())
        pictures = photos(DISTINCT)
        web.pages |= {f"/{number}": pictures[number % DISTINCT] for number in range(IMAGES)}
        lines = "".join(f"{web.url}/{number},a photo of number {number} on a wall\n" for number in range(IMAGES))
        (folder / "list.csv").write_text(f"url,caption\n{lines}")
        theirs = stack.enter_context(server_of(reference_python(), Path(__file__).with_name("img2dataset_rate.py")))
        ours = stack.enter_context(server_of(sys.executable, "-m", "tests.benchmarks.fetch_rate"))
        numbers = iter(range(1000))

        def reference() -> float:
            output = folder / f"theirs-{next(numbers)}"
            request = {
                "url_list": str(folder / "list.csv"), "input_format": "csv", "url_col": "url", "caption_col": "caption",
                "output_format": "webdataset", "output_folder": str(output), "thread_count": 16, "image_size": 256,
                "resize_mode": "keep_ratio", "encode_quality": 90, "number_sample_per_shard": 1024, "enable_wandb": False,
                "compute_hash": None,
            }  # fmt: skip
            measured = IMAGES / answer_of(theirs, request)
            assert sum(json.loads(path.read_text())["successes"] for path in output.glob("*_stats.json")) == IMAGES
            return measured

        def our_rate() -> float:
            return IMAGES / answer_of(ours, {"root": str(folder / f"ours-{next(numbers)}"), "list": str(folder / "list.csv")})

        note = f"{IMAGES} photos of 500 x 375, start-up excluded on both sides; ours includes plan, tokens and seal"
        return interleaved(reference, our_rate, rounds=3, note=note)
