"""Parquet files of others, read in small batches within bounds: what a footer declares may be wrong, or made to hurt."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bounds import MAX_TABLE_ROWS
from trainer.errors import InputError, RunError
from trainer.staging.foreign import shown

_BATCH_ROWS = 256
_MAX_BATCH_BYTES = 256 << 20
"""Of a batch of rows; pictures of 1 MB each fill it."""
BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises on bytes that are no parquet file, by kind of damage."""


def read_parquet(data: bytes, source: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a small parquet file; none where it lacks one of the columns.

    Raises:
        InputError: not a whole parquet file, or one of more than MAX_TABLE_ROWS rows.
    """
    try:
        with pq.ParquetFile(io.BytesIO(data)) as parquet:
            if set(columns) <= set(parquet.schema_arrow.names):
                if not 0 <= parquet.metadata.num_rows <= MAX_TABLE_ROWS:
                    raise InputError(f"{source}: {shown(parquet.metadata.num_rows)} rows, at most {MAX_TABLE_ROWS:,} are read")
                yield from read_batches(parquet, source, columns)
    except (InputError, RunError):
        raise
    except BROKEN as error:
        raise InputError(f"{source}: not a whole parquet file: {first_line(error)}") from error


def read_batches(parquet: pq.ParquetFile, source: str | Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of an open file, a batch of them in memory. InputError if a batch takes more than is read at once."""
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
        if batch.nbytes > _MAX_BATCH_BYTES:
            raise InputError(f"{source}: {batch.num_rows} rows take {batch.nbytes:,} bytes, at most {_MAX_BATCH_BYTES:,} are read at once")
        yield from batch.to_pylist()


def first_line(error: BaseException) -> str:
    """What went wrong, without the stack that pyarrow and duckdb add."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
