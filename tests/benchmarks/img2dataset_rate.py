"""Runs in the reference environment: CPU-seconds of img2dataset's own download, start-up left out.

python img2dataset_rate.py; each line of input is the options of one download as JSON, answered by a line of seconds.
"""

import importlib
import json
import os
import sys
import time

module = importlib.import_module("img2dataset.main")  # the package has a function of that name


def in_this_process(processes_count, downloader, reader, subjob_size, max_shard_retry):  # type: ignore[no-untyped-def]
    """What img2dataset does in a pool of new processes, done here, so that its imports are not paid for at each download."""
    assert all(status for status, _ in map(downloader, reader))


def main() -> None:
    """Serve until the input ends."""
    module.multiprocessing_distributor = in_this_process
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # its logging process prints too
    for line in sys.stdin:
        start = time.process_time()
        module.download(**json.loads(line))
        print(time.process_time() - start, file=answers, flush=True)


if __name__ == "__main__":
    main()
