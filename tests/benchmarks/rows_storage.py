"""Row T: fetching a list of URLs, decoding, resizing and encoding, against img2dataset on the same server."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.harness import Measured, interleaved, row
from tests.benchmarks.photos import photos
from tests.reference import reference_python
from tests.staging.remote.web import web_server

FEW, MANY = 100, 700  # the difference of both runs is free of what a start costs
DISTINCT = 100


def children_seconds() -> float:
    """CPU time of ended children alone: the web server runs in this process."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*command: str | Path) -> str:
    """Run a command; a failure shows its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def rate(fetch: Callable[[int], None]) -> Callable[[], float]:
    """Images per CPU-second between a short and a long run of `fetch`."""

    def measure() -> float:
        seconds = []
        for count in (FEW, MANY):
            start = children_seconds()
            fetch(count)
            seconds.append(children_seconds() - start)
        return (MANY - FEW) / (seconds[1] - seconds[0])

    return measure


@row(
    "T",
    what="`stage fetch` of URLs to short side 256, q90, against img2dataset on the same server",
    unit="images / CPU-s",
    target=1.2,
)
def fetching(folder: Path) -> Measured:
    """Both keep the ratio, make the short side 256 and encode at 90; ours resamples bicubic with antialiasing, img2dataset by area."""
    script = reference_python().with_name("img2dataset")
    with web_server() as web:
        web.pages |= {f"/{number}": data for number, data in enumerate(photos(DISTINCT))}
        for count in (FEW, MANY):
            lines = "".join(f"{web.url}/{number % DISTINCT}?{number},a photo of number {number} on a wall\n" for number in range(count))
            (folder / f"{count}.csv").write_text(f"url,caption\n{lines}")
        plain = dict(web.pages)
        web.pages |= {f"/{number % DISTINCT}?{number}": plain[f"/{number % DISTINCT}"] for number in range(MANY)}

        def theirs(count: int) -> None:
            shutil.rmtree(folder / "theirs", ignore_errors=True)
            run(
                script, f"--url_list={folder / f'{count}.csv'}", "--input_format=csv", "--url_col=url", "--caption_col=caption",
                "--output_format=webdataset", f"--output_folder={folder / 'theirs'}", "--processes_count=1", "--thread_count=16",
                "--image_size=256", "--resize_mode=keep_ratio", "--encode_quality=90", "--number_sample_per_shard=1024",
                "--enable_wandb=False", "--compute_hash=None",
            )  # fmt: skip
            stats = [json.loads(path.read_text()) for path in (folder / "theirs").glob("*_stats.json")]
            assert sum(part["successes"] for part in stats) == count

        def ours(count: int) -> None:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            trainer = (sys.executable, "-m", "trainer", "stage")
            options = ("--set", "staging.image_policy=short256")
            planned = json.loads(run(*trainer, "plan", "urls", "--root", folder / "ours", "--list", folder / f"{count}.csv", *options))
            run(*trainer, "fetch", "--plan", planned["uri"], "--concurrency", "16")
            run(*trainer, "seal", "--plan", planned["uri"])

        return interleaved(rate(theirs), rate(ours), rounds=2, note="marginal, 500 x 375; ours with plan, tokens and seal")
