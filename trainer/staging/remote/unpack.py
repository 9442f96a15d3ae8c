"""`stage unpack`: parquet files that hold the pictures themselves become WebDataset tars, which `stage pairs` reads.

Hugging Face's data sets have this form (a struct with bytes, `text` or `caption`, perhaps a `label` named in the schema), as does
RWKV's YFCC15M (`images`, and `texts`, CLIP's token ids). A file named after a split (train-00000-of-00002.parquet) sets the split of
its samples; without captions the label is the caption. Each file becomes a tar; existing tars are kept, so a killed run resumes.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.bounds import MAX_PICTURE_BYTES, check_size, naming_full_disk
from trainer.errors import InputError, RunError
from trainer.progress import check_stop, progress
from trainer.staging.captions import as_line, clean_name, texts_in
from trainer.staging.foreign import shown
from trainer.staging.parquet import BROKEN, first_line, folded, read_batches
from trainer.staging.samples import as_json, picture_suffix
from trainer.staging.sources.listing import list_source
from trainer.staging.sources.places import split_in, split_of, tell_splits
from trainer.staging.sources.records import COLUMNS, roles_of
from trainer.staging.tokens import Tokenizer
from trainer.storage import exists, join, open_store
from trainer.storage.base import absolute, local_path
from trainer.storage.scratch import temporary_folder

_IMAGES = ("images", "image", "jpg", "png", "webp", "img", "picture", "photo")


def unpack_parquet(source: str, folder: str) -> int:
    """Turn every parquet file below `source` into a tar below `folder`; returns the number of rows written now.

    Raises:
        InputError: no parquet file, or one without pictures or captions.
        RunError: a parquet file is truncated or damaged.
    """
    files = [file for file in list_source(absolute(source)) if file.name.endswith(".parquet")]
    if not files:
        raise InputError(f"{source}: no .parquet file there")
    folder = absolute(folder)
    tokenize = Tokenizer()
    splits = [split_in(file.name) or split_of(file.name.rpartition("/")[0].rpartition("/")[2]) for file in files]
    are_told = tell_splits(splits)
    written = 0
    for number, (file, split) in enumerate(zip(files, splits, strict=True), start=1):
        target = join(folder, file.name.removesuffix(".parquet") + ".tar")
        if not exists(target):
            written += _unpack_file(file.uri, target, tokenize, split if are_told else "")
        progress("unpack", number, len(files), "files")
    return written


def _unpack_file(uri: str, target: str, tokenize: Tokenizer, split: str) -> int:
    import webdataset

    count = 0
    with naming_full_disk(target), tempfile.TemporaryFile() as stream:
        tar = webdataset.TarWriter(stream, encoder=False, mtime=0, user="firstsight", group="firstsight")
        for data, captions, label in _rows(uri, tokenize):
            check_stop()
            facts = {name: text for name, text in (("label", label), ("split", split)) if text}
            about = {"json": as_json(facts)} if facts else {}
            tar.write({"__key__": f"{count:08d}", picture_suffix(data): data, "txt": "\n".join(captions).encode(), **about})
            count += 1
        tar.close()
        size = stream.seek(0, 2)
        stream.seek(0)
        open_store(target).put_stream(target, stream, size)
    return count


def _rows(uri: str, tokenize: Tokenizer) -> Iterator[tuple[bytes, list[str], str]]:
    """Picture, captions and label of each row; memory holds a batch of rows, whatever the file's size."""
    with temporary_folder("unpack") as scratch:
        path = local_path(uri)
        if path is None:
            path = scratch / "file.parquet"
            with naming_full_disk(uri), open(path, "wb") as file:
                for piece in open_store(uri).stream_unsealed(uri):
                    file.write(piece)
        try:
            schema = pq.read_schema(path)
            image, text, label = _columns(uri, schema)
            names = _label_names(schema, label)
            with folded(path) as parquet:
                for number, row in enumerate(read_batches(parquet, uri, [name for name in (image, text, label) if name])):
                    picture = row[image]
                    data = picture.get("bytes") if isinstance(picture, dict) else picture
                    if data is not None and not isinstance(data, bytes):
                        raise InputError(f"{uri}: row {number}: {image} must be bytes, got {shown(data)}")
                    check_size(len(data or b""), MAX_PICTURE_BYTES, f"{uri}: row {number}")
                    named = _label(row.get(label), names)
                    is_said = bool(named) and (bool(names) or isinstance(row[label], str))
                    yield data or b"", _captions(row[text], tokenize) if text else [named] * is_said, named
        except (InputError, RunError):
            raise
        except BROKEN as error:
            raise RunError(f"{uri}: not a whole parquet file: {first_line(error)}") from error


def _columns(uri: str, schema: pa.Schema) -> tuple[str, str, str]:
    """The columns of pictures, captions and labels; one of the last two may be empty."""
    held = [name for name in _IMAGES if name in schema.names]
    held += [field.name for field in schema if _holds_bytes(field.type) and field.name not in held]
    roles = roles_of(schema.names)
    text, label = (roles.get(role, [""])[0] for role in ("caption", "label"))
    text = text or ("txt" if "txt" in schema.names else "")
    for names, found in ((_IMAGES, held), (COLUMNS["caption"], [text or label])):
        if not any(found):
            raise InputError(f"{uri}: has no column {' or '.join(map(repr, names[:5]))} (it has {', '.join(schema.names)})")
    return held[0], text, label


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _label_names(schema: pa.Schema, label: str) -> list[str]:
    """The class names behind a column of numeric labels, if Hugging Face's schema has them."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
        return [clean_name(name) for name in names]
    return []


def _label(value: object, names: Sequence[str]) -> str:
    """A label on one line; empty for a number without a name, and for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else "" if names else str(value)
    return clean_name(value) if isinstance(value, str) else ""


def _captions(value: object, tokenize: Tokenizer) -> list[str]:
    """Captions from a string, a list of strings, or a list of token ids, each on one line; anything else has none."""
    if isinstance(value, list) and value and all(isinstance(token, int) and not isinstance(token, bool) for token in value):
        return [tokenize.text(value)]
    return [as_line(text) for text in texts_in(value)]
