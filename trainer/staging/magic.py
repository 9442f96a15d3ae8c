"""Recognise unsupported files by their first bytes: phones name HEIC `.jpg`, and downloads have any name."""

from trainer.staging.kinds import UNREAD_CAUSE, explain_unread

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BEGINNINGS = (
    (b"%PDF", ".pdf"), (b"%!PS", ".eps"), (b"\xff\x0a", ".jxl"), (b"\0\0\0\x0cJXL ", ".jxl"), (b"II\xbc", ".jxr"), (b"\0\0\1\0", ".ico"),
    (b"\0\0\2\0", ".cur"), (b"icns", ".icns"), (b"DDS ", ".dds"), (b"v/1\x01", ".exr"), (b"#?RADIANCE", ".hdr"), (b"8BPS\0\2", ".psb"),
    (b"gimp xcf", ".xcf"), (b"qoif", ".qoi"), (b"SIMPLE  =", ".fits"), (b"AT&TFORM", ".djvu"), (b"FLIF", ".flif"), (b"BPG\xfb", ".bpg"),
    (b"\x1aE\xdf\xa3", ".webm"), (b"8BPS", ".psd"), (b"FUJIFILMCCD-RAW", ".raf"), (b"\xd7\xcd\xc6\x9a", ".wmf"), (b"P7\n", ".pam"),
    (b"PF\n", ".pfm"), (b"Pf\n", ".pfm"), (b"\xabKTX", ".ktx"),
)  # fmt: skip


def explain_bytes(data: bytes) -> tuple[str, str] | None:
    """Cause and detail for rejecting a file of a known unsupported kind; None for any other."""
    if data.startswith(b"version https://git-lfs"):
        return "not an image", "a pointer of Git LFS: git lfs pull fetches the picture"
    suffix = _kind(data)
    return (UNREAD_CAUSE, f"by its bytes {explain_unread(suffix)}") if suffix else None


def _kind(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return ".heic" if data[8:12] in _HEIF else ".mp4"
    if data[:2] in (b"II", b"MM") and data[8:10] == b"CR":
        return ".cr2"
    for beginning, suffix in _BEGINNINGS:
        if data.startswith(beginning):
            return suffix
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return ".svg"
    return ""
