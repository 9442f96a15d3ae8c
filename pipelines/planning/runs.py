"""runs/<run id>.json: which request a run stored. A task that can take no other task's output finds it there.

Format 1, which older versions wrote, has neither format_version nor checksum.
"""

from trainer.errors import Corrupt
from trainer.storage import layout
from trainer.storage.documents import read_document, write_document

FORMAT_VERSION = 2


def write_run(root: str, run: str, request: str) -> None:
    """Record the URI of the request that the run stored."""
    write_document(layout.kubeflow_run(root, run), {"format_version": FORMAT_VERSION, "request": request})


def read_run(root: str, run: str) -> str | None:
    """The URI of the request that the run stored; None where it stored none.

    Raises:
        InputError: a newer firstsight wrote the record.
        Corrupt: it is not a record of a run, or names no stored request below `root`.
    """
    uri = layout.kubeflow_run(root, run)
    value = read_document(uri, "a run's record", FORMAT_VERSION, checked_from=2, bare=True)
    if value is None:
        return None
    if value["format_version"] == 1 and value.keys() != {"format_version", "request"}:
        raise Corrupt(f"{uri}: not a run's record of firstsight: no format_version")
    request = value.get("request")
    if not isinstance(request, str) or not request.startswith(f"{root.rstrip('/')}/experiments/"):
        raise Corrupt(f"{uri}: names no stored request: start the run again, and its first step writes the record")
    return request
