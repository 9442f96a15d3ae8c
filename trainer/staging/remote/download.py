"""Large files over HTTP, taken up where they broke off, and zips unpacked without trust in their names and sizes."""

import errno
import json
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import urllib3
from urllib3.exceptions import HTTPError

from trainer.errors import InputError, RunError
from trainer.progress import check_stop, progress
from trainer.staging.remote.http import FetchError, follow
from trainer.storage.retries import PASSING_STATUSES, Retries

MAX_MEMBER_BYTES = 64 << 20
"""A larger member of a zip is no picture of NIGHTS, whatever size it declares."""

_PIECE_BYTES = 1 << 20


def download(url: str, target: Path, *, contact: str = "", retry_seconds: float = 600.0) -> None:
    """Fetch one file into `target`, going on from what an earlier try left in `<target>.partial`.

    Args:
        url: http or https.
        target: local file; when it is there it is whole.
        contact: mail or URL that the server is told.
        retry_seconds: how long nothing may come before it is given up.

    Raises:
        InputError: the server refuses it (404 and the like), or it leads away from the web.
        RunError: nothing came for that long.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, note = target.with_name(target.name + ".partial"), target.with_name(target.name + ".partial.json")
    headers = {"User-Agent": f"firstsight/0.1 (data fetcher{f'; +{contact}' if contact else ''})", "Accept-Encoding": "identity"}
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=10, read=30), retries=False)
    retries = Retries(retry_seconds)
    while True:
        try:
            size = _resume_download(pool, url, headers, partial, note, retries)
        except (HTTPError, OSError) as error:
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise RunError(f"{target}: cannot be written: {error.strerror}; what came is kept") from error  # type: ignore[union-attr]
            retries.wait(f"{url}: {type(error).__name__} at byte {partial.stat().st_size if partial.exists() else 0}")
            continue
        if partial.stat().st_size == size:
            break
        retries.wait(f"{url}: ends at byte {partial.stat().st_size} of {size}")
    pool.clear()
    os.replace(partial, target)
    note.unlink(missing_ok=True)


def _resume_download(pool: urllib3.PoolManager, url: str, headers: dict[str, str], partial: Path, note: Path, retries: Retries) -> int:
    """One try: append what comes to `partial`; returns the size of the whole file."""
    start = partial.stat().st_size if partial.exists() else 0
    version = json.loads(note.read_text())["version"] if start and note.exists() else ""
    if not version:
        start = 0  # without knowing which version it is of, a part is worth nothing
    wanted = {**headers, "Range": f"bytes={start}-", "If-Range": version} if start else headers
    with _open(pool, url, wanted, retries) as response:
        if response.status == 416:  # nothing is left, if it is the same version still
            total = re.match(r"bytes \*/(\d+)$", response.headers.get("content-range", ""))
            if total and int(total[1]) == start:
                return start
            partial.unlink()
            return -1
        announced = response.headers.get("content-length", "")
        if not announced.isdecimal():
            raise RunError(f"{url}: the server does not say how long it is")
        length = int(announced)
        if response.status == 200:
            start = 0
        note.write_text(json.dumps({"version": response.headers.get("etag") or response.headers.get("last-modified") or ""}))
        size = start + length
        with open(partial, "r+b" if start else "wb") as file:
            file.seek(start)
            for piece in response.stream(_PIECE_BYTES, decode_content=False):
                file.write(piece)
                retries.restart()
                check_stop()
                progress(f"download {url.rsplit('/', 1)[-1]}", file.tell() >> 20, size >> 20, "MiB")
        return size


def _open(pool: urllib3.PoolManager, url: str, headers: dict[str, str], retries: Retries) -> urllib3.BaseHTTPResponse:
    """The answer to a request, redirects followed; InputError where the server refuses."""
    first = url
    for _ in range(6):
        response = pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
        if response.status in (301, 302, 303, 307, 308):
            response.drain_conn()
            try:
                url = follow(first, url, response.headers.get("location", ""))
            except FetchError as error:
                raise InputError(f"{first}: {error}") from error
        elif response.status in PASSING_STATUSES:
            response.drain_conn()
            retries.wait(f"{url}: answers {response.status}")
        elif response.status in (200, 206, 416):
            return response
        else:
            response.drain_conn()
            raise InputError(f"{first}: the server refuses it ({response.status} {response.reason or ''})".replace(" )", ")"))
    raise RunError(f"{first}: leads on and on, or is busy")


def unpack(archive: Path, folder: Path, place: str = "") -> int:
    """Unpack a zip into `folder`; returns the number of files. Files that are there with the right size are kept.

    Args:
        archive: local zip.
        folder: nothing is ever written outside it.
        place: `ref` or `distort`: where members belong whose names do not say so.

    Raises:
        RunError: not a zip, cut short, a damaged or an oversized member, or a name that leads out of the folder.
    """
    count = 0
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if member.is_dir():
                    continue
                target = folder / layout_name(archive, member, place)
                if not (target.exists() and target.stat().st_size == member.file_size):
                    _unpack_member(archive, file, member, target)
                count += 1
                if count % 200 == 0:
                    check_stop()
                    progress(f"unpack {archive.name}", count, len(file.infolist()), "files")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise RunError(f"{archive}: not a whole zip: {error}; run the same command again, or fetch it anew") from error
    return count


def layout_name(archive: Path | str, member: zipfile.ZipInfo, place: str) -> PurePosixPath:
    """A member's name below the folder: no root, no `..`, no link. RunError where it would lead out of it."""
    name = member.filename
    parts = PurePosixPath(name).parts
    is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
    if name.startswith(("/", "\\")) or "\\" in name or ":" in name or ".." in parts or "\0" in name or is_link or not parts:
        raise RunError(f"{archive}: member {name!r} would lead out of its folder: this is no archive to unpack")
    parts = parts[1:] if parts[0] == "nights" and len(parts) > 1 else parts
    return PurePosixPath(place, *parts) if place and parts[0] != place else PurePosixPath(*parts)


def _unpack_member(archive: Path, file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write one member, whole or not at all, counting what really comes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with file.open(member) as stream, open(partial, "wb") as out:
        while piece := stream.read(_PIECE_BYTES):
            out.write(piece)
            if out.tell() > MAX_MEMBER_BYTES:
                out.close()
                partial.unlink()
                raise RunError(f"{archive}: member {member.filename!r} is larger than {MAX_MEMBER_BYTES >> 20} MiB: a decompression bomb")
    os.replace(partial, target)


def fetch_nights(source: str, table: str, folder: Path, *, contact: str = "", keep: bool = False, chunks: int = 100) -> Path:
    """Bring NIGHTS into `folder`, in its layout; whatever is there already is not brought again.

    Args:
        source: `…/nights.zip` (a URL or a local file), or the URL or local folder of the chunks ({ref,distort}/000.zip …).
        table: URL or path of data.csv, which the chunks do not hold; empty for nights.zip.
        folder: local.
        contact: mail or URL that the server is told.
        keep: keep the zips once they are unpacked.
        chunks: how many there are of each sort.
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
        remote = uri.startswith(("http://", "https://"))
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
        raise InputError(f"{folder}: no data.csv came with {source}: name it by --table")
    return folder


def _local_file(uri: str, target: Path, contact: str) -> Path:
    """A local path of a URL or path."""
    if uri.startswith(("http://", "https://")):
        download(uri, target, contact=contact)
        return target
    if not Path(uri).is_file():
        raise InputError(f"{uri}: no such file")
    return Path(uri)
