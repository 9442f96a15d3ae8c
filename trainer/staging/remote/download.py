"""Large files over HTTP, resumed where they were interrupted, and zips unpacked without trust in their names and sizes."""

import contextlib
import http.client
import json
import lzma
import os
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import urllib3
from urllib3.exceptions import HTTPError

from trainer.bounds import MAX_ARCHIVE_MEMBERS, MAX_ARCHIVE_RATIO, MAX_MEMBER_BYTES, naming_full_disk
from trainer.errors import InputError, RunError
from trainer.progress import check_stop, progress
from trainer.redaction import without_credentials
from trainer.staging.ranges import BoundedReader
from trainer.staging.remote.addresses import PrivateAddressError
from trainer.staging.remote.http import FetchError, announced_length, check_contact, follow, host_of
from trainer.staging.remote.patience import patient_pool
from trainer.storage.retries import PASSING_STATUSES, Retries, retry_after

_PIECE_BYTES = 1 << 20
_REDIRECTS = 5
_HEADER_SECONDS = 60.0
_LEAST_BYTES = 64 << 10
"""Bytes that must arrive before the time limit restarts, so that a server cannot stall by dripping single bytes."""
_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})$")
BROKEN_ZIP = (
    zipfile.BadZipFile, EOFError, ValueError, LookupError, OverflowError, RuntimeError, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What zipfile raises on invalid zips, by kind of damage; NotImplementedError is a RuntimeError."""


def download(url: str, target: Path, *, contact: str = "", retry_seconds: float = 600.0) -> None:
    """Fetch one file into `target`, resuming from `<target>.partial` if an earlier try left one.

    Args:
        url: http or https.
        target: local file; it exists only once it is complete.
        contact: e-mail address or URL sent to the server.
        retry_seconds: how long nothing may arrive before giving up.

    Raises:
        InputError: the server refuses it (404 and the like), or it redirects off the web or to a private address.
        RunError: nothing arrived for that long.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, note = target.with_name(target.name + ".partial"), target.with_name(target.name + ".partial.json")
    try:
        host_of(url)
    except FetchError as error:
        raise InputError(str(error)) from error
    agent = f"firstsight/0.1 (data fetcher{f'; +{check_contact(contact)}' if contact else ''})"
    headers = {"User-Agent": agent, "Accept-Encoding": "identity"}
    pool = patient_pool(_HEADER_SECONDS, whole=False, timeout=urllib3.Timeout(connect=10, read=30), retries=False)
    retries = Retries(retry_seconds)
    while True:
        try:
            with naming_full_disk(str(target), target.parent):
                size = _resume_download(pool, url, headers, partial, note, retries, retry_seconds)
        except PrivateAddressError as error:
            raise InputError(f"{url}: private address: {error}") from error
        except PermissionError as error:
            raise RunError(f"{target}: cannot be written: {error.strerror}; the part already downloaded is kept") from error
        except (HTTPError, OSError, http.client.HTTPException, _WrongAnswerError) as error:
            words = str(error) if isinstance(error, _WrongAnswerError) else type(error).__name__
            retries.wait(f"{url}: {words} at byte {_size(partial)}")
            continue
        if _size(partial) == size:
            break
        retries.wait(f"{url}: ends at byte {_size(partial)} of {size}")
    pool.clear()
    os.replace(partial, target)
    note.unlink(missing_ok=True)


class _WrongAnswerError(Exception):
    """The response does not match the request; another try may succeed."""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _version(note: Path) -> str:
    """Version of the file that an earlier try began to fetch; empty if its note is missing, damaged or not a valid header value."""
    try:
        value = json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    version = value.get("version") if isinstance(value, dict) else None
    return version if isinstance(version, str) and version.isascii() and version.isprintable() else ""


def _resume_download(
    pool: urllib3.PoolManager, url: str, headers: dict[str, str], partial: Path, note: Path, retries: Retries, patience: float
) -> int:
    """One try: append what arrives to `partial`; returns the size of the whole file."""
    start = _size(partial)
    version = _version(note) if start else ""
    if not version:
        start = 0  # a part of an unknown version is worthless
    wanted = {**headers, "Range": f"bytes={start}-", "If-Range": version} if start else headers
    with _open(pool, url, wanted, retries) as response:
        if response.status == 416:  # nothing is left, if it is the same version still
            total = re.match(r"bytes \*/(\d+)$", response.headers.get("content-range", ""))
            if total and int(total[1]) == start:
                return start
            partial.unlink()
            return -1
        length = announced_length(response)
        if length is None:
            raise RunError(f"{url}: the server did not report the file's size")
        if response.status == 200:
            start = 0
        else:
            _check_range(response.headers.get("content-range", ""), start, length)
        note.write_text(json.dumps({"version": response.headers.get("etag") or response.headers.get("last-modified") or ""}))
        size = start + length
        with open(partial, "r+b" if start else "wb") as file:
            file.seek(start)
            for piece in _pieces(response, retries, patience):
                file.write(piece)
                check_stop()
                progress(f"download {without_credentials(url).rsplit('/', 1)[-1]}", file.tell() >> 20, size >> 20, "MiB")
        return size


def _check_range(said: str, start: int, length: int) -> None:
    found = _RANGE.match(said)
    if not found or int(found[1]) != start or int(found[2]) != start + length:
        raise _WrongAnswerError(f"requested everything from byte {start}, but the response has {said[:100]!r}")


def _pieces(response: urllib3.BaseHTTPResponse, retries: Retries, patience: float) -> Iterator[bytes]:
    """The body as it arrives; TimeoutError if less than _LEAST_BYTES arrive within `patience` seconds."""
    came, since = 0, time.monotonic()
    while piece := response.read1(_PIECE_BYTES, decode_content=False):
        yield piece
        came += len(piece)
        if came >= _LEAST_BYTES:
            came, since = 0, time.monotonic()
            retries.restart()
        elif time.monotonic() - since > patience:
            raise TimeoutError(f"{came} bytes in {patience:g} s")


def _open(pool: urllib3.PoolManager, url: str, headers: dict[str, str], retries: Retries) -> urllib3.BaseHTTPResponse:
    """The response after following redirects; InputError if the server refuses."""
    first, redirects = url, 0
    while True:
        response = pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
        if response.status in (200, 206, 416):
            return response
        response.close()  # its body is useless, and may never end
        if response.status in (301, 302, 303, 307, 308):
            redirects += 1
            if redirects > _REDIRECTS:
                raise RunError(f"{first}: more than {_REDIRECTS} redirects")
            try:
                url = follow(url, response.headers.get("location", ""))
            except FetchError as error:
                raise InputError(f"{first}: {error}") from error
        elif response.status in PASSING_STATUSES or response.status >= 500:
            retries.wait(f"{url}: answers {response.status}", at_least=retry_after(response.headers.get("retry-after", ""), most=60.0))
        else:
            raise InputError(f"{first}: the server rejected the request ({response.status} {response.reason or ''}".rstrip() + ")")


def unpack(archive: Path, folder: Path, place: str = "") -> int:
    """Unpack a zip into `folder`; returns the number of files. Existing files of the right size are kept.

    Args:
        archive: local zip.
        folder: nothing is ever written outside it.
        place: `ref` or `distort`: the folder for members whose names do not include it.

    Raises:
        RunError: not a zip, truncated, damaged, beyond the limits on zips, or a name that leads out of the folder.
    """
    count = 0
    try:
        raw = open(archive, "rb", buffering=0)
        with BoundedReader(raw, _PIECE_BYTES, str(archive)) as reader, zipfile.ZipFile(reader) as file:
            members = list(files_of(file, archive, archive.stat().st_size, place))
            for member, name in members:
                target = folder / name
                if not (target.exists() and target.stat().st_size == member.file_size):
                    _unpack_member(file, member, target)
                count += 1
                if count % 200 == 0:
                    check_stop()
                    progress(f"unpack {archive.name}", count, len(members), "files")
    except InputError as error:
        raise RunError(str(error)) from error
    except RunError:
        raise
    except BROKEN_ZIP as error:
        raise RunError(f"{archive}: not a whole zip: {error}; run the same command again, or download it again") from error
    return count


def files_of(file: zipfile.ZipFile, archive: Path | str, archive_bytes: int, place: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files of a zip, checked against the limits, with each one's place in NIGHTS' layout.

    Raises:
        InputError: too many files, or a file or all files together are too large once unpacked.
        RunError: a name is empty or leads out of the folder.
    """
    found = [info for info in file.infolist() if not info.filename.endswith("/")]
    if len(found) > MAX_ARCHIVE_MEMBERS:
        raise InputError(f"{archive}: {len(found):,} files, at most {MAX_ARCHIVE_MEMBERS:,} are read")
    total, most = sum(info.file_size for info in found), max(MAX_MEMBER_BYTES, MAX_ARCHIVE_RATIO * archive_bytes)
    if total > most:
        raise InputError(
            f"{archive}: {total:,} bytes unpacked, at most {most:,} ({MAX_ARCHIVE_RATIO} times its own) are: a decompression bomb"
        )
    for info in found:
        if info.file_size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{archive}: member {info.filename!r} has {info.file_size:,} bytes, at most {MAX_MEMBER_BYTES:,} are read: "
                "a decompression bomb"
            )
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"{archive}: member {info.filename!r} must be stored or deflated, but it is compressed with method {info.compress_type}"
            )
        if info.flag_bits & 1:
            raise InputError(f"{archive}: member {info.filename!r} is encrypted")
        yield info, layout_name(archive, info, place)


def layout_name(archive: Path | str, member: zipfile.ZipInfo, place: str) -> PurePosixPath:
    """A member's name below the folder: no root, no `..`, no link. RunError if it would lead out of it."""
    name = member.filename
    parts = PurePosixPath(name).parts
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if not parts:
        raise RunError(f"{archive}: a member has no name ({name!r}): this archive is not safe to unpack")
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in parts or "\0" in name or is_link:
        raise RunError(f"{archive}: member {name!r} would lead out of its folder: this archive is not safe to unpack")
    parts = parts[1:] if parts[0] == "nights" and len(parts) > 1 else parts
    return PurePosixPath(place, *parts) if place and parts[0] != place else PurePosixPath(*parts)


def _unpack_member(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one member atomically; zipfile returns no more bytes than its entry declares."""
    partial = target.with_name(target.name + ".partial")
    try:
        with naming_full_disk(str(target), target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open(member) as stream, open(partial, "wb") as out:
                while piece := stream.read(_PIECE_BYTES):
                    out.write(piece)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def fetch_nights(source: str, table: str, folder: Path, *, contact: str = "", keep: bool = False, chunks: int = 100) -> Path:
    """Download NIGHTS into `folder`, in its layout; files already there are not downloaded again.

    Args:
        source: `…/nights.zip` (a URL or a local file), or the URL or local folder of the chunks ({ref,distort}/000.zip …).
        table: URL or path of data.csv, which the chunks do not contain; empty for nights.zip.
        folder: local folder.
        contact: e-mail address or URL sent to the server.
        keep: keep the zips once they are unpacked.
        chunks: number of chunks of each kind.
    """
    if source.endswith(".zip"):
        wanted = [(source, "")]
    else:
        wanted = [(f"{source.rstrip('/')}/{sort}/{number:03d}.zip", sort) for sort in ("ref", "distort") for number in range(chunks)]
    for uri, place in wanted:
        done = folder / ".done" / (re.sub(r"[^A-Za-z0-9]+", "-", uri)[-80:])
        if done.exists():
            continue
        archive = _local_file(uri, folder / ".zips" / (f"{place}-" if place else "") / uri.rsplit("/", 1)[-1], contact)
        remote = uri[:8].lower().startswith(("http://", "https://"))
        try:
            unpack(archive, folder, place)
        except RunError:
            if remote:
                archive.unlink()  # so that the next run fetches it again
            raise
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
        if remote and not keep:
            archive.unlink()
    if table and not (folder / "data.csv").exists():
        fetched = _local_file(table, folder / "data.csv", contact)
        if fetched != folder / "data.csv":
            (folder / "data.csv").write_bytes(fetched.read_bytes())
    if not (folder / "data.csv").exists():
        raise InputError(f"{folder}: {source} did not contain data.csv: pass it with --table")
    return folder


def _local_file(uri: str, target: Path, contact: str) -> Path:
    """A local path of a URL or path."""
    if uri[:8].lower().startswith(("http://", "https://")):
        download(uri, target, contact=contact)
        return target
    if not Path(uri).is_file():
        raise InputError(f"{uri}: no such file")
    return Path(uri)
