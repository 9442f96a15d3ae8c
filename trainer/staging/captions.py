"""Captions and facts of a sample, from the text, JSON or table cell that holds them: the same for folders, lists and tars.

A caption is text. In JSON, parquet or a table, a string is one caption and a list of strings is several; null, NaN, booleans,
numbers, objects and nested lists are not captions, and are never converted to text.
"""

import codecs
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.bounds import MAX_CAPTION_BYTES, MAX_CAPTIONS, parse_json
from trainer.errors import InputError
from trainer.staging.foreign import shown

CAPTION_KEYS = ("captions", "caption", "text", "texts")
"""Keys of a JSON object that may hold captions; the first that holds any counts."""
CAPTION_SUFFIXES = ("txt", "caption")
"""Files of plain captions, one per line; the first non-empty one counts."""
NO_CAPTION = "no caption"
"""The cause if no file next to a picture could contain a caption."""
MAY_BE_LATIN_1 = "perhaps Latin-1 (Windows-1252): convert it with iconv -f WINDOWS-1252 -t UTF-8"
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


_BOX = re.compile(r"\d+(\s+-?\d*\.\d+){4,}")  # a class, and a place in the picture
_SHOWN_KEYS = 12


class BadCaptionError(ValueError):
    """A caption that cannot be used; rejects are counted by `cause`."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class NoCaptionError(BadCaptionError):
    """There is no caption, only other `facts`: another file may have the captions."""

    def __init__(self, cause: str, detail: str, facts: "Facts | None" = None) -> None:
        super().__init__(cause, detail)
        self.facts = facts or Facts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is next to a picture.

    Attributes:
        captions: non-empty strings; the tuple may be empty.
        label: class name on one line, or empty.
        split: as written in the file, or empty.
        family: pictures of one family share a split.
    """

    captions: tuple[str, ...] = ()
    label: str = ""
    split: str = ""
    family: str = ""


def read_facts(beside: Mapping[str, bytes], where: str) -> Facts:
    """Captions, label, split and family from the files beside a picture.

    Plain captions (.txt, .caption) take precedence, unless the JSON has the same ones and more. Label, split and family come from
    the JSON. An empty file or caption does not override another file.

    Args:
        beside: content by suffix, without the dot and in lower case: json, txt, caption; others are ignored.
        where: the sample's name without suffix, for errors.

    Raises:
        BadCaptionError: no caption, or a file that cannot be read.
    """
    fault, found = BadCaptionError(NO_CAPTION, "no .txt and no .json of the same name"), Facts()
    if "json" in beside:
        value = parse_object(beside["json"], f"{where}.json")
        try:
            found = facts_of(value, f"{where}.json")
        except NoCaptionError as error:
            fault, found = error, error.facts
    for suffix in CAPTION_SUFFIXES:
        if suffix in beside:
            plain = parse_text(beside[suffix], f"{where}.{suffix}")
            if plain:
                return found if set(plain) <= set(found.captions) else replace(found, captions=plain)
            fault = fault if isinstance(fault, NoCaptionError) else NoCaptionError("empty caption", f"{where}.{suffix}", found)
    if not found.captions:
        raise fault
    return found


def labelled(found: "Facts | BadCaptionError") -> "Facts | BadCaptionError":
    """Facts with the label as caption if only the caption is missing: for a source that has labels and no captions."""
    if not isinstance(found, NoCaptionError) or not found.facts.label:
        return found
    try:
        return replace(found.facts, captions=(caption_of(found.facts.label, found.detail),))
    except BadCaptionError as error:
        return error


def caption_of(label: str, where: str) -> str:
    """A class name as a caption, with underscores as spaces.

    Raises:
        BadCaptionError: it is a number.
    """
    if label.isdecimal():
        raise BadCaptionError("class is a number", f"{where}: {shown(label)} is not a caption: use the name of the class")
    return as_words(label)


def check_caption_size(size: int, where: str) -> None:
    """BadCaptionError if a sample's text or facts exceed MAX_CAPTION_BYTES."""
    if size > MAX_CAPTION_BYTES:
        raise BadCaptionError("too many bytes", f"{where}: {size:,}, at most {MAX_CAPTION_BYTES:,}")


def parse_text(data: bytes, where: str) -> tuple[str, ...]:
    """Captions of a text file in UTF-8, one per line; empty lines do not count. BadCaptionError if it is not UTF-8, or holds boxes."""
    try:
        text = decode(data)
    except ValueError as error:
        raise BadCaptionError("caption not UTF-8", f"{where} {error}") from error
    found = clean_captions(split_lines(text), where)
    if found and all(map(_BOX.fullmatch, found)):
        raise BadCaptionError("boxes, not captions", f"{where}: {shown(found[0])}, like YOLO labels")
    return found


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The object of a JSON file that holds captions; a string, or a list of strings, stands for its captions.

    Raises:
        BadCaptionError: not JSON, or JSON of another type.
    """
    try:
        value = parse_json(decode(data), where)
    except InputError as error:
        raise BadCaptionError("caption not JSON", str(error)) from error
    except ValueError as error:
        raise BadCaptionError("caption not JSON", f"{where} {error}") from error
    if isinstance(value, str | list):
        value = {"captions": value}
    if not isinstance(value, dict):
        raise BadCaptionError("caption not JSON", f"{where}: expected an object, a string or a list, got {shown(value)}")
    return value


def facts_of(value: Mapping[str, Any], where: str) -> Facts:
    """Facts of an object with caption(s) or text(s), label, split and family.

    Raises:
        NoCaptionError: no caption in it; the error carries the other facts.
        BadCaptionError: a label or family that is not a name, or half a character in a text.
    """
    label, split, family = (one_line(value.get(key), f"{where}: {key}") for key in ("label", "split", "family"))
    facts = Facts(label=label, split=split, family=family)
    if value and not any(key in value for key in CAPTION_KEYS):
        found = ", ".join(list(value)[:_SHOWN_KEYS])
        raise NoCaptionError("empty caption", f"{where}: has {found}, but none of {', '.join(CAPTION_KEYS)}", facts)
    try:
        return replace(facts, captions=first_captions((value.get(key) for key in CAPTION_KEYS), where))
    except NoCaptionError as error:
        raise NoCaptionError(error.cause, error.detail, facts) from error


def first_captions(values: Iterable[object], where: str) -> tuple[str, ...]:
    """Captions of the first value that holds any.

    Raises:
        NoCaptionError: none does; its cause distinguishes empty values from values that are not text.
    """
    odd = None
    for value in values:
        if isinstance(value, str) and value.isascii() and (text := value.strip()):
            return (text,)
        if captions := clean_captions(texts_in(value), where):
            return captions
        odd = value if odd is None and not _is_empty(value) else odd
    if odd is not None:
        raise NoCaptionError("caption is not text", f"{where}: {shown(odd)}")
    raise NoCaptionError("empty caption", where)


def split_lines(text: str) -> list[str]:
    """Split at the line ends used in files. Unicode's other line ends (U+2028, NEL …) are white space within a caption."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def texts_in(value: object) -> Iterator[str]:
    """The texts that a value holds: one string, or those of a list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        yield from (text for text in value if isinstance(text, str))


def clean_captions(captions: Iterable[str], where: str) -> tuple[str, ...]:
    """Strip captions and drop empty ones.

    Raises:
        BadCaptionError: too many, or one that has half a character (a lone surrogate).
    """
    clean = tuple(text for text in map(str.strip, captions) if text)
    if len(clean) > MAX_CAPTIONS:
        raise BadCaptionError("too many captions", f"{where}: {len(clean)}, at most {MAX_CAPTIONS}")
    for text in clean:
        if not text.isascii():
            _check_whole(text, where)
    return clean


def one_line(value: object, where: str) -> str:
    """A name, such as a label, on one line: white space of any kind becomes a blank, so that it can be written one per line.

    Args:
        value: text, a whole number, or nothing (null, NaN).
        where: for errors.

    Raises:
        BadCaptionError: something else.
    """
    if isinstance(value, str):
        name = clean_name(value)
        if not name.isascii():
            _check_whole(name, where)
        return name
    if _is_empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps, as pandas writes it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or len(shown(value)) > 20:
        raise BadCaptionError("label is not text", f"{where}: {shown(value)}")
    return str(value)


def clean_name(text: str) -> str:
    """Text on one line, without byte order marks: it survives being written to and read from a file of one name per line."""
    return " ".join(text.replace("\ufeff", "").split())


def as_words(name: str) -> str:
    """A name with blanks for underscores."""
    return re.sub(r"_+", " ", name)


def as_line(text: str) -> str:
    """The text unchanged if it can be written and read back as one line; else joined into one line."""
    return text if text.splitlines() == [text] and text == text.strip() and "\ufeff" not in text else clean_name(text)


def decode(data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: it is not UTF-8; the message names the likely encoding and how to convert it.
    """
    check_beginning(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (3 if data.startswith(codecs.BOM_UTF8) else 0)
        line, byte = data.count(b"\n", 0, start) + 1, f"{data[start]:#04x} at {start}"
        raise ValueError(f"must be UTF-8, but line {line} has byte {byte}, {MAY_BE_LATIN_1}") from error


def check_beginning(data: bytes) -> None:
    """ValueError, as in `decode`, if a text begins like UTF-16 or UTF-32."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "")
    if not encoding and data[:64].count(0) >= max(1, len(data[:64]) // 4):
        encoding = "UTF-16"
    if encoding:
        raise ValueError(f"must be UTF-8, but its first bytes look like {encoding}: convert it with iconv -f {encoding} -t UTF-8")


def _check_whole(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadCaptionError("caption not UTF-8", f"{where}: half a character, {text[error.start]!r}") from error


def _is_empty(value: object) -> bool:
    """Whether a value is empty: null, NaN, white space, or a list of these."""
    if isinstance(value, list | tuple):
        return all(_is_empty(one) for one in value)
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())
