"""User-supplied RDMs: both formats are read, and anything else is rejected with one line that says what is wrong and where."""

from pathlib import Path

import numpy as np
import pytest

from trainer.errors import InputError
from trainer.storage.rdms import Rdm, find_pictures, read_rdm

NAMES = ["cat", "dog", "house", "tree"]
SQUARE = np.array([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]], float)


def csv_of(square=SQUARE, names=NAMES, columns=None) -> str:
    rows = [",".join(map(str, row)) for row in np.asarray(square).tolist()]
    return "\n".join(["," + ",".join(columns or names), *(f"{name},{row}" for name, row in zip(names, rows, strict=True))])


def write(folder: Path, name: str, content) -> str:
    place = folder / name
    if isinstance(content, str):
        place.write_text(content)
    elif isinstance(content, bytes):
        place.write_bytes(content)
    else:
        np.save(place, content)
    return str(place)


def changed(row: int, column: int, value: float) -> np.ndarray:
    square = SQUARE.copy()
    square[row, column] = value
    return square


def test_both_formats_give_the_same_rdm(tmp_path):
    """A table with names, as spreadsheets write it, and numpy's matrix beside its names."""
    table = read_rdm(write(tmp_path, "V1.csv", "\ufeff" + csv_of().replace("\n", "\r\n")))
    write(tmp_path, "IT.txt", "\n".join(NAMES) + "\n")
    matrix = read_rdm(write(tmp_path, "IT.npy", SQUARE.astype(np.float32)))

    assert (table.name, matrix.name) == ("V1", "IT")
    assert table.names == matrix.names == tuple(NAMES)
    assert table.values.tolist() == matrix.values.tolist() == SQUARE.tolist()


def test_its_checksum_covers_the_names(tmp_path):
    """A plan pins matrix and names; a different order of names is a different RDM."""
    write(tmp_path, "V1.txt", "\n".join(NAMES))
    uri = write(tmp_path, "V1.npy", SQUARE)
    sha256 = read_rdm(uri).sha256
    assert read_rdm(uri, sha256).sha256 == sha256
    write(tmp_path, "V1.txt", "\n".join(reversed(NAMES)))
    with pytest.raises(InputError, match="not the RDM that the experiment was planned with"):
        read_rdm(uri, sha256)


def test_rounding_is_not_asymmetry(tmp_path):
    """Matrices in single precision differ from their transpose in the last digit, and their diagonal is not exactly 0."""
    write(tmp_path, "V1.txt", "\n".join(NAMES))
    square = SQUARE + np.triu(np.full((4, 4), 1e-7))
    assert isinstance(read_rdm(write(tmp_path, "V1.npy", square)), Rdm)


BAD = {
    "not symmetric": (csv_of(changed(0, 2, 2.5)), "not symmetric: 2.5 between 'cat' and 'house', 2 the other way"),
    "NaN": (csv_of(changed(1, 3, np.nan)), "nan between 'dog' and 'tree': every entry must be a finite number"),
    "NaN on the diagonal": (csv_of(changed(1, 1, np.nan)), "nan between 'dog' and 'dog'"),
    "infinite": (csv_of(changed(1, 3, np.inf)), "inf between 'dog' and 'tree'"),
    "a similarity": (csv_of(1 - SQUARE / 10), "'cat' differs from itself by 1: a dissimilarity is 0 there; is it a similarity"),
    "no variation": (csv_of(1 - np.eye(4)), "all dissimilarities are 1: there is nothing to correlate with"),
    "a name twice": (csv_of(names=["cat", "dog", "cat", "tree"]), "names 'cat' twice"),
    "columns in another order": (csv_of(columns=["dog", "cat", "house", "tree"]), "in the same order: column 'dog' meets row 'cat'"),
    "too few columns": (csv_of(columns=NAMES[:3]), "in the same order: 3 columns and 4 rows"),
    "a row too short": (csv_of().rpartition(",")[0], "row 'tree' has 3 numbers, not 4"),
    "a word among the numbers": (csv_of().replace("6.0", "far", 1), "the matrix may contain only numbers"),
    "too few pictures": (csv_of(SQUARE[:3, :3], NAMES[:3]), "must compare 4 to 5,000 pictures, got 3"),
    "nothing": ("", "must compare 4 to 5,000 pictures, got 0"),
    "not text": (b"\xff\xfe\x00", "not CSV in UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_invalid_rdms_are_rejected_in_one_line(tmp_path, case):
    """The line names the file, the two pictures and the value."""
    content, line = BAD[case]
    uri = write(tmp_path, "V1.csv", content)
    with pytest.raises(InputError) as caught:
        read_rdm(uri)
    assert str(caught.value).startswith(f"RDM {uri}: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_MATRICES = {
    "not square": (SQUARE[:, :3], NAMES, "must be square, got 4 x 3"),
    "condensed": (SQUARE[np.triu_indices(4, 1)], NAMES, "must be a square matrix of numbers, got float64 of shape (6,)"),
    "text": (np.array([["a", "b"]]), NAMES, "must be a square matrix of numbers, got <U1"),
    "one name too few": (SQUARE, NAMES[:3], "4 rows but 3 names: each row needs the name of its picture"),
    "no names": (SQUARE, None, "V1.txt: no such file, which names the rows of the .npy file"),
    "no matrix": (b"not numpy", NAMES, "not a NumPy array"),
}


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_a_matrix_that_does_not_fit_its_names_is_refused(tmp_path, case):
    """Each with one line, whatever the file contains."""
    content, names, line = BAD_MATRICES[case]
    if names is not None:
        write(tmp_path, "V1.txt", "\n".join(names))
    with pytest.raises(InputError) as caught:
        read_rdm(write(tmp_path, "V1.npy", content))
    assert line in str(caught.value)


@pytest.mark.parametrize(("name", "line"), [("V1.mat", "must be a .csv file with names"), ("V2.csv", "V2.csv: no such file")])
def test_other_files_are_refused_by_name(tmp_path, name, line):
    """An unsupported suffix, and a missing file."""
    write(tmp_path, "V1.mat", b"MATLAB")
    with pytest.raises(InputError, match=line):
        read_rdm(str(tmp_path / name))


def test_pictures_are_found_by_key_or_by_the_name_after_the_staging_counter():
    """A name that two pictures share once their counters are stripped matches neither."""
    keys = ["000000-cat", "000001-dog", "000002-cat", "house"]
    assert find_pictures(["dog", "house", "000002-cat"], keys) == ([1, 3, 2], [])
    assert find_pictures(["cat", "tree"], keys) == ([], ["cat", "tree"])
