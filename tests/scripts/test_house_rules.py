"""scripts/house_rules.py finds what it forbids."""

from pathlib import Path

import pytest

from scripts.house_rules import broken_rules, phrases


@pytest.mark.parametrize(
    "line",
    [
        "saved behind the last commit", "it goes on from there", "the launcher lets go of it", "a cluster of one's own", "to mend the key",
        "a file that is not there", "a backend that there is not", "class Manners:", "refused by name", "chosen anew", "to be had",
        "and all else", "rows but for those", "for want of memory", "the report is made again", "reading broke off at byte 7",
        "1 (failed on the way)", "killed in mid-run", "no cluster to ask", "certificates that TLS trusts", "pages made from code",
    ],
)  # fmt: skip
def test_a_phrase_is_found_by_its_line(line: str) -> None:
    (found,) = phrases("x.py", f"fine\n{line}\n")
    assert found.startswith("x.py:2: ")


def test_english_passes() -> None:
    text = "on the way there\nresumes from the last commit\nrecommend, amend and fundamental\nbehind a proxy\nthe file is not there\n"
    assert list(phrases("x.py", text)) == []


def test_sizes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n" + "    x = 1\n" * 400)
    assert [rule.rpartition(": ")[2] for rule in broken_rules(path)] == ["401 lines, at most 400", "f has 401 lines, at most 60"]


@pytest.mark.parametrize(
    "line",
    [
        "None where there is no such job",
        "InputError where it is damaged",
        "captions, a line each",
        "what stands beside it",
        "chosen chosen by",
    ],
)
def test_a_condition_a_list_and_a_doubled_word_are_found(line: str) -> None:
    (found,) = phrases("x.py", f"None, wherever it is, and that that is\n{line}\n")
    assert found.startswith("x.py:2: ")
