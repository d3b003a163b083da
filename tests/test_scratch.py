"""A contestant's folder is removed whatever it holds, and nothing outside it is touched."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from runner.contestant.scratch import clear

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

TREES = st.recursive(st.none(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=12)
Tree = dict[str, "Tree"] | None


def plant(tree: Tree, place: Path) -> None:
    """Make a file of None and a folder of a dictionary; folders are closed once they are full."""
    if tree is None:
        place.write_text("x")
        return
    place.mkdir()
    for name, inner in tree.items():
        plant(inner, place / name)
    place.chmod(0)


@given(st.dictionaries(st.sampled_from("abc"), TREES))
def test_any_tree_is_removed(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Tree]) -> None:
    folder = tmp_path_factory.mktemp("any") / "scratch"
    plant(tree, folder)
    folder.chmod(0o700)
    clear(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_tree_deeper_than_any_recursion_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(1500):
        os.mkdir("deeper")  # noqa: PTH102 - a path that long has no name
        os.chdir("deeper")
    os.chdir(tmp_path)
    clear(folder)
    assert not folder.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    folder, outside = tmp_path / "scratch", tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (outside / "kept").write_text("x")
    (folder / "inner").mkdir(parents=True)
    (folder / "to a folder").symlink_to(outside)
    (folder / "inner" / "to a folder").symlink_to("../../outside")
    (folder / "to a file").symlink_to(outside / "kept")
    (folder / "to nothing").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "door"))
    clear(folder)
    assert not folder.exists()
    assert (outside / "kept").read_text() == "x"
    assert outside.stat().st_mode & 0o777 == 0o755


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    clear(tmp_path / "missing")
