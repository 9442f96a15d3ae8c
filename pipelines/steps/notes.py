"""What a step says to the person who waits, beside the progress of its job."""

import json
import os
import time

from trainer.progress import PROGRESS_VARIABLE


def note(step: str, text: str, *, detail: bool = False) -> None:
    """Say one thing about a step; a detail is shown with -v only."""
    print(f"{step}: {text}", flush=True)
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with open(path, "ab", buffering=0) as stream:
            stream.write((json.dumps({"time": time.time(), "step": step, "note": text, "detail": detail}) + "\n").encode())
