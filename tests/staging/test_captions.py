"""One place reads what is next to a picture, for folders and tars alike."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.staging.captions import BadCaptionError, Facts, clean_name, first_captions, read_facts

NOTHING = [None, math.nan, "", "  ", [], [None], [[], " "], [math.nan]]
NO_TEXT = [True, False, 3.5, 0, -1, {"raw": "a dog"}, {}, [["a dog"]], [3], [{"raw": "a dog"}]]


@pytest.mark.parametrize(
    ("beside", "facts"),
    [
        ({"txt": b"a dog\n\n  a cat \r\n"}, Facts(captions=("a dog", "a cat"))),
        ({"txt": "\ufeffein Hündchen".encode()}, Facts(captions=("ein Hündchen",))),
        ({"txt": "one\u2028line\x85\rtwo".encode()}, Facts(captions=("one\u2028line", "two"))),
        ({"caption": b"a dog"}, Facts(captions=("a dog",))),
        ({"json": b'"a dog"'}, Facts(captions=("a dog",))),
        ({"json": b'["a dog", " a cat"]'}, Facts(captions=("a dog", "a cat"))),
        ({"json": b'{"caption": "a dog", "captions": [], "label": "dog"}'}, Facts(captions=("a dog",), label="dog")),
        ({"json": b'{"captions": null, "caption": NaN, "text": "a dog"}'}, Facts(captions=("a dog",))),
        ({"json": b'{"captions": {"a": 1}, "caption": "a dog"}'}, Facts(captions=("a dog",))),
        ({"json": b'["a dog", null, 3, true, ["a cat"], {"raw": "x"}]'}, Facts(captions=("a dog",))),
        ({"json": b'{"caption": "", "label": "dog", "split": "val"}', "txt": b"x"}, Facts(captions=("x",), label="dog", split="val")),
        ({"json": b'{"caption": 3.5, "label": "dog", "family": "f"}', "txt": b"x"}, Facts(captions=("x",), label="dog", family="f")),
        ({"json": b'{"caption": 3.5, "label": "dog"}', "txt": b" \n"}, "caption is not text: s.json: 3.5"),
        ({"json": b'{"label": "dog"}', "txt": b"a dog"}, Facts(captions=("a dog",), label="dog")),
        ({"json": b'{"caption": "a cat"}', "txt": b"a dog"}, Facts(captions=("a dog",))),
        ({"json": b'{"caption": "a cat"}', "txt": b" \n"}, Facts(captions=("a cat",))),
        ({"json": b'{"captions": ["a dog", "a cat"]}', "txt": b"a dog"}, Facts(captions=("a dog", "a cat"))),
        ({"txt": b"", "caption": b"a dog"}, Facts(captions=("a dog",))),
        ({"json": b'{"caption": "a dog", "label": 7, "family": 3.0}'}, Facts(captions=("a dog",), label="7", family="3")),
        ({"json": '{"caption": "x", "label": " a\\tb\\u2028c\u0085d\\n"}'.encode()}, Facts(captions=("x",), label="a b c d")),
        ({"json": b'{"caption": "x", "label": NaN, "family": null}'}, Facts(captions=("x",))),
        ({}, "no caption: no .txt and no .json of the same name"),
        ({"json": b"{}"}, "empty caption: s.json"),
        ({"txt": b" \n"}, "empty caption: s.txt"),
        ({"json": b'{"caption": "x", "label": true}'}, "label is not text: s.json: label: True"),
        ({"json": b'{"caption": "x", "label": ["a"]}'}, "label is not text: s.json: label: ['a']"),
        ({"json": b"[" * 100_000}, "caption not JSON: s.json: nested deeper than 64 levels"),
        ({"json": b"9" * 5000}, "caption not JSON: s.json: not JSON: Exceeds the limit"),
        ({"json": b'{"caption": "x", "n": ' + b"9" * 5000 + b"}"}, "caption not JSON: s.json: not JSON: Exceeds the limit"),
        ({"json": b'"\\ud83d alone"'}, r"caption not UTF-8: s.json: half a character, '\ud83d'"),
        ({"json": b'{"caption": "x", "label": "\\udc00"}'}, r"caption not UTF-8: s.json: label: half a character, '\udc00'"),
        ({"json": b"3.5"}, "caption not JSON: s.json: expected an object, a string or a list, got 3.5"),
        ({"json": b'{"caption": '}, "caption not JSON: s.json: not JSON: Expecting value"),
        ({"txt": "café".encode("latin-1")}, "caption not UTF-8: s.txt must be UTF-8, but line 1 has byte 0xe9 at 3, perhaps Latin-1"),
        ({"txt": "a dog".encode("utf-16")}, "caption not UTF-8: s.txt must be UTF-8, but its first bytes look like UTF-16: convert"),
        ({"txt": "a dog".encode("utf-16-be")}, "caption not UTF-8: s.txt must be UTF-8, but its first bytes look like UTF-16"),
        ({"json": '{"a": 1}'.encode("utf-32")}, "caption not JSON: s.json must be UTF-8, but its first bytes look like UTF-32"),
        ({"txt": b"a\n" * 1001}, "too many captions: s.txt: 1001, at most 1000"),
    ],
)  # fmt: skip
def test_what_stands_beside_a_picture(beside: dict[str, bytes], facts: Facts | str) -> None:
    """Texts are captions, and nothing else; what is wrong is said with the file's name."""
    if isinstance(facts, Facts):
        assert read_facts(beside, "s") == facts
    else:
        with pytest.raises(BadCaptionError) as caught:
            read_facts(beside, "s")
        assert str(caught.value).startswith(facts)


@pytest.mark.parametrize("value", [*NOTHING, *NO_TEXT])
def test_no_text_is_no_caption(value: object) -> None:
    """Nothing hides the next value, and none of it becomes a Python repr."""
    assert first_captions([value, ["a dog", value]], "s") == ("a dog",)
    if value in NO_TEXT:
        with pytest.raises(BadCaptionError, match=r"caption is not text: s: "):
            first_captions([value], "s")
    else:
        with pytest.raises(BadCaptionError, match="empty caption: s"):
            first_captions([value], "s")


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_names_survive_being_written_one_a_line(text: str) -> None:
    """Whatever white space is in them, and read by splitlines or by lines, with or without a byte order mark."""
    name = clean_name(text)
    written = f"{name}\nother".encode()
    assert written.decode("utf-8-sig").splitlines() == [name, "other"]
    assert [line.strip() for line in written.decode().split("\n")] == [name, "other"]
    assert json.loads(json.dumps(name)) == name
    assert clean_name(name) == name
