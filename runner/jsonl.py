"""Lines of JSON that are no records: findings, comparisons, sums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.load import BadInput


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add to a file of JSON lines. Raises BadInput for one that cannot be written, or holds anything else."""
    require(path)
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise BadInput(f"cannot write '{path}': {error.strerror}") from error


def require(path: Path) -> None:
    """Raise BadInput for a file that does not begin as JSON lines do: it is somebody's, and stays as it is."""
    try:
        begins = _first_line(path)[:2] if path.is_file() else b""
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror}") from error
    if begins not in (b"", b'{"'):  # of a first line that was torn, this is there
        raise BadInput(f"-o '{path}' holds other than JSON lines: name another file")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line for line in file if line.strip()), b"")
