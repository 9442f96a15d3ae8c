"""What a step says to the person who waits, beside the progress of its job."""

from trainer.progress import tell

FAILED = "failed: "
"""Begins what a step says when it fails; why follows."""


def note(step: str, text: str, *, detail: bool = False) -> None:
    """Say one thing about a step; a detail is shown with -v only."""
    print(f"{step}: {text}", flush=True)
    tell(step, text, detail=detail)
