"""Every known attack has a file that tries it, or a line that says where else it is tried, or why not."""

from __future__ import annotations

import re

from test_exploits import ATTACKS, FAMILIES, FOLDER, README
from test_exploits_gpu import ATTACKS as GPU_ATTACKS
from test_exploits_gpu import ELSEWHERE_TOO

#: Family -> how many kinds of attack are known; none of them may get lost.
KNOWN = {"OUT": 11, "MEM": 12, "TIME": 24, "NUM": 9, "HAR": 22, "LIB": 6, "SPEC": 10, "RES": 9}

ROW = re.compile(r"^\| ([A-Z]+-\d+) \| (\S[^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
LINK = re.compile(r"\[(\w+)\]\(([^)]+)\)")


def files_of(attack: str) -> str:
    """Return the links to the files that try a kind of attack, those on a CPU first."""
    own = [f"[{one.name}]({one.name}.py)" for one in ATTACKS if one.id == attack]
    own += [
        f"[{one.name}](gpu/{one.name}.py)"
        for one in GPU_ATTACKS
        if one.id == attack and one.name not in ELSEWHERE_TOO
    ]
    return ", ".join(own)


def renewed(text: str) -> str:
    """Return the README with the files of each row as their docstrings have it."""
    return ROW.sub(lambda row: f"| {row[1]} | {row[2]} | {files_of(row[1])} | {row[4]} |", text)


def rows() -> list[tuple[str, str, str, str]]:
    return ROW.findall(README.read_text())


def test_no_kind_of_attack_is_lost() -> None:
    assert KNOWN.keys() == FAMILIES.keys()
    known = [f"{family}-{number}" for family, last in KNOWN.items() for number in range(1, last + 1)]
    assert [id_ for id_, *_ in rows()] == known
    assert {one.id for one in (*ATTACKS, *GPU_ATTACKS) if not one.honest} <= set(known)


def test_each_is_tried_or_says_why_not() -> None:
    assert [id_ for id_, _, files, instead in rows() if not (files or instead.strip())] == []


def test_the_files_are_current() -> None:
    text = README.read_text()
    assert text == renewed(text), "`python -m tests.test_known_attacks` renews them"


def test_every_link_leads_to_a_file_of_its_name() -> None:
    for id_, _, files, instead in rows():
        for name, place in LINK.findall(files + instead):
            assert (FOLDER / place).is_file(), id_
            assert (FOLDER / place).stem == name, id_


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
