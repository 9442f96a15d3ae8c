"""Untrusted parquet files, read in small batches within limits: a footer may be wrong or malicious."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainer.bounds import MAX_COPY_FILE_BYTES, MAX_TABLE_ROWS, check_size
from trainer.errors import InputError, RunError
from trainer.staging.foreign import shown

_BATCH_ROWS = 256
_MAX_BATCH_BYTES = 256 << 20
"""Size of a batch of rows; pictures of 1 MB each fill it."""
BROKEN = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises on invalid parquet files, by kind of damage."""


def folded(file: Any) -> pq.ParquetFile:
    """Open a parquet file so that a value repeated in many rows takes memory once, until `read_batches` has counted it.

    Args:
        file: a seekable file, or its path; `schema_arrow` has dictionaries in place of texts.
    """
    metadata = pq.read_metadata(file)
    columns = [metadata.schema.column(number) for number in range(len(metadata.schema))]
    names = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    return pq.ParquetFile(file, metadata=metadata, read_dictionary=names)


def read_parquet(data: bytes, source: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a small parquet file; none if it lacks one of the columns.

    Raises:
        InputError: not a whole parquet file, or one of more than MAX_TABLE_ROWS rows.
    """
    try:
        with folded(io.BytesIO(data)) as parquet:
            if set(columns) <= set(parquet.schema_arrow.names):
                if not 0 <= parquet.metadata.num_rows <= MAX_TABLE_ROWS:
                    raise InputError(f"{source}: {shown(parquet.metadata.num_rows)} rows, at most {MAX_TABLE_ROWS:,} are read")
                yield from read_batches(parquet, source, columns, MAX_COPY_FILE_BYTES)
    except (InputError, RunError):
        raise
    except BROKEN as error:
        raise InputError(f"{source}: not a whole parquet file: {first_line(error)}") from error


def read_batches(parquet: pq.ParquetFile, source: str | Path, columns: Sequence[str], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of an open file, one batch in memory at a time. InputError if a batch, or all rows, exceed the limit."""
    total = 0
    for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
        size = sum(map(_unfolded_bytes, batch.columns))
        if size > _MAX_BATCH_BYTES:
            raise InputError(f"{source}: {batch.num_rows} rows take {size:,} bytes, at most {_MAX_BATCH_BYTES:,} are read at once")
        total += size
        check_size(total, most, str(source))
        yield from batch.to_pylist()


def _unfolded_bytes(column: pa.Array) -> int:
    """Bytes of a column once each row has its own copy of its value."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _unfolded_bytes(column.flatten())
    if pa.types.is_struct(column.type):
        return sum(map(_unfolded_bytes, column.flatten()))
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    values, counts = column.indices.drop_null().value_counts().flatten()
    lengths = pc.cast(pc.binary_length(column.dictionary.take(values)), pa.int64())
    return int(pc.sum(pc.multiply(lengths, counts)).as_py() or 0)


def first_line(error: BaseException) -> str:
    """What went wrong, without the stack that pyarrow and duckdb add."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
