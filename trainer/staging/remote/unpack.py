"""`stage unpack`: parquet files that hold the pictures themselves become WebDataset tars, which `stage pairs` reads.

So does RWKV's YFCC15M come (columns `images`, a struct with bytes, and `texts`, CLIP's token ids). A tar for each file;
those that are there are kept, so that a killed run goes on.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bounds import MAX_PICTURE_BYTES, check_size, naming_full_disk
from trainer.errors import InputError, RunError
from trainer.progress import check_stop, progress
from trainer.staging.captions import as_line, texts_in
from trainer.staging.foreign import shown
from trainer.staging.parquet import BROKEN, first_line, read_batches
from trainer.staging.samples import picture_suffix
from trainer.staging.sources.listing import list_source
from trainer.staging.tokens import Tokenizer
from trainer.storage import exists, join, open_store
from trainer.storage.base import absolute, local_path

_IMAGES = ("images", "image", "jpg")
_TEXTS = ("texts", "text", "caption", "captions", "txt")


def unpack_parquet(source: str, folder: str) -> int:
    """Turn every parquet file below `source` into a tar below `folder`; returns the number of rows written now.

    Raises:
        InputError: no parquet file, or one without pictures or captions.
        RunError: one that is cut short or damaged.
    """
    files = [file for file in list_source(absolute(source)) if file.name.endswith(".parquet")]
    if not files:
        raise InputError(f"{source}: no .parquet file there")
    folder = absolute(folder)
    tokenize = Tokenizer()
    written = 0
    for number, file in enumerate(files, start=1):
        target = join(folder, file.name.removesuffix(".parquet") + ".tar")
        if not exists(target):
            written += _unpack_file(file.uri, target, tokenize)
        progress("unpack", number, len(files), "files")
    return written


def _unpack_file(uri: str, target: str, tokenize: Tokenizer) -> int:
    import webdataset

    count = 0
    with naming_full_disk(target), tempfile.TemporaryFile() as stream:
        tar = webdataset.TarWriter(stream, encoder=False, mtime=0, user="firstsight", group="firstsight")
        for data, captions in _rows(uri, tokenize):
            check_stop()
            tar.write({"__key__": f"{count:08d}", picture_suffix(data): data, "txt": "\n".join(captions).encode()})
            count += 1
        tar.close()
        size = stream.seek(0, 2)
        stream.seek(0)
        open_store(target).put_stream(target, stream, size)
    return count


def _rows(uri: str, tokenize: Tokenizer) -> Iterator[tuple[bytes, list[str]]]:
    """Picture and captions of each row; memory holds a batch of rows, whatever the file's size."""
    with tempfile.TemporaryDirectory(prefix="firstsight-unpack-") as scratch:
        path = local_path(uri)
        if path is None:
            path = Path(scratch) / "file.parquet"
            with naming_full_disk(uri), open(path, "wb") as file:
                for piece in open_store(uri).stream(uri):
                    file.write(piece)
        try:
            with pq.ParquetFile(path) as parquet:
                image, text = (_choose(uri, parquet.schema_arrow, names) for names in (_IMAGES, _TEXTS))
                for number, row in enumerate(read_batches(parquet, uri, [image, text])):
                    picture = row[image]
                    data = picture.get("bytes") if isinstance(picture, dict) else picture
                    if data is not None and not isinstance(data, bytes):
                        raise InputError(f"{uri}: row {number}: {image} must be bytes, got {shown(data)}")
                    check_size(len(data or b""), MAX_PICTURE_BYTES, f"{uri}: row {number}")
                    yield data or b"", _captions(row[text], tokenize)
        except (InputError, RunError):
            raise
        except BROKEN as error:
            raise RunError(f"{uri}: not a whole parquet file: {first_line(error)}") from error


def _choose(uri: str, schema: pa.Schema, names: Sequence[str]) -> str:
    found = next((name for name in names if name in schema.names), None)
    if found is None:
        raise InputError(f"{uri}: has no column {' or '.join(map(repr, names))} (it has {', '.join(schema.names)})")
    return found


def _captions(value: object, tokenize: Tokenizer) -> list[str]:
    """Captions of a string, of strings, or of one list of token ids, each on one line; of whatever else, none."""
    if isinstance(value, list) and value and all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        return [tokenize.text(value)]
    return [as_line(text) for text in texts_in(value)]
