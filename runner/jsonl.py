"""Lines of JSON that are no records: findings, comparisons, sums."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.load import BadInput


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add to a file of JSON lines, and make the folders that it lies in.

    Raises BadInput for one that cannot be written, or holds anything else.
    """
    require(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _is_torn(path)
        with path.open("a") as file:
            if torn:
                file.write("\n")
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise BadInput(f"cannot write '{path}': {error.strerror}") from error


def require(path: Path) -> None:
    """Raise BadInput for a file that begins otherwise than JSON lines: it is somebody's, and stays."""
    try:
        begins = _first_line(path)[:2] if path.is_file() else b""
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror}") from error
    if begins not in (b"", b'{"'):  # of a first line that was torn, this is there
        raise BadInput(f"-o '{path}' holds other than JSON lines: name another file")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line for line in file if line.strip()), b"")


def _is_torn(path: Path) -> bool:
    """Whether the last writer was killed in the middle of a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
