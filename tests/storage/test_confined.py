"""Which addresses lie below a place, however they are spelled, and a process that is kept to some."""

import os
from pathlib import Path

import pytest

from tests.servers import S3Server
from trainer.errors import InputError
from trainer.storage import confined, join, open_store, read_bytes, write_bytes

INSIDE = ["s3://b/team-a", "s3://b/team-a/", "s3://b/team-a/x", "s3://b/team-a//x", "s3://b/team-a/./x", "s3://b/team-a/%41", "s3://data/x"]
OUTSIDE = [
    "s3://b/team-b",
    "s3://b/team-a-evil",
    "s3://b/team-a-evil/x",
    "s3://b",
    "s3://b/",
    "s3://c/team-a",
    "s3://B/team-a",
    "s3://b/TEAM-A",
    "S3://b/team-b",
    "s3:/b/team-a",
    "s3:///b/team-a",
    "s3://b//team-a",
    "s3://b/team-a/../team-b",
    "s3://b/team-a/..",
    "s3://b/team-a/x/../../team-b",
    "s3://b/./team-b",
    "s3://b/team-a/%2e%2e/team-b",
    "s3://b/team-a/%252e%252e/team-b",
    "s3://b/team-a%2f..%2fteam-b",
    "s3://b/team-a\\..\\team-b",
    "s3://b/team-a/%5c..%5c..%5cteam-b",
    "s3://b/" + "%25" * 20 + "2e",
    "s3://database/x",
    "gs://b/team-a",
    "file:///etc/passwd",
    "FILE:///data/../etc",
    "/etc/passwd",
    "/data-of-others/x",
    "/data/../etc",
    "~/x",
    "team-a",
    "",
]
PLACES = ("s3://b/team-a", "s3://data", "/data")


@pytest.mark.parametrize("address", [*INSIDE, "/data/x", "/data", "file:///data/x", "FILE:///data/x"])
def test_addresses_below_a_place(address: str) -> None:
    assert confined.is_below(address, PLACES)


@pytest.mark.parametrize("address", OUTSIDE)
def test_addresses_that_only_look_as_if(address: str) -> None:
    """Nearby names, `..`, doubled slashes, encodings, other schemes and buckets."""
    assert not confined.is_below(address, PLACES)


def test_a_link_leads_out(tmp_path: Path) -> None:
    """And a place that is a link itself stands for its target."""
    (tmp_path / "own").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "own/link").symlink_to(tmp_path / "theirs")
    (tmp_path / "alias").symlink_to(tmp_path / "own")
    assert not confined.is_below(f"{tmp_path}/own/link/x", [f"{tmp_path}/own"])
    assert confined.is_below(f"{tmp_path}/alias/x", [f"{tmp_path}/alias"])


@pytest.mark.parametrize("address", ["s3://b", "s3://b/team-a", "s3://b/a.b/..c", "/data", "/data/x/"])
def test_a_place_is_plain(address: str) -> None:
    assert confined.is_plain(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "s3://",
        "b/x",
        "s3:///x",
        "s3://b//x",
        "s3://b/../x",
        "/data/.",
        "s3://b/%41",
        "/a b",
        "gs://b/x",
        "s3://b/*",
        "s3://b/${x}",
    ],
)
def test_what_is_no_plain_place(address: str) -> None:
    assert not confined.is_plain(address)


def test_a_process_is_kept_to_its_places(s3_root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked of the store, though the key would open it; the refusal names the address and the remedy."""
    own, theirs = join(s3_root, "team-a"), join(s3_root, "team-b")
    write_bytes(join(theirs, "x"), b"theirs")
    monkeypatch.setenv(confined.VARIABLE, f"{own} s3://lists/public")
    write_bytes(join(own, "x"), b"mine")
    store, inside, outside = open_store(own), join(own, "x"), join(theirs, "x")
    for refused in (
        lambda: read_bytes(outside),
        lambda: next(store.stream(outside)),
        lambda: store.get_range(outside, 0, 1),
        lambda: write_bytes(outside, b"mine"),
        lambda: store.create(outside, b"mine"),
        lambda: store.replace(outside, b"mine", ""),
        lambda: store.copy(outside, inside),
        lambda: store.copy(inside, outside),
        lambda: list(store.list(theirs)),
        lambda: list(store.list(s3_root)),
        lambda: store.holds(theirs),
        lambda: store.head(outside),
        lambda: store.delete(outside),
        lambda: store.sweep(theirs),
        lambda: read_bytes(join(own, "../team-b/x")),
    ):
        with pytest.raises(
            InputError, match=r"is outside the locations that runs of this profile may use.*s3://lists/public.*profiles.<name>.reads"
        ):
            refused()
    assert [info.uri for info in store.list(own)] == [inside]
    monkeypatch.delenv(confined.VARIABLE)
    assert read_bytes(outside) == b"theirs"
    assert os.environ.get(confined.VARIABLE) is None
