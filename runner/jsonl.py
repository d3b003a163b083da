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
    """Raise BadInput for a file whose first line is not of JSON: it is somebody's, and stays as it is."""
    try:
        line = _first_line(path) if path.is_file() else b""
        # one that does not end is of a writer that was killed
        is_ours = isinstance(json.loads(line), dict) if line.endswith(b"\n") else line[:1] in (b"", b"{")
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror}") from error
    except ValueError:
        is_ours = False
    if not is_ours:
        raise BadInput(f"-o '{path}' holds other than JSON lines: name another file")


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return next((line for line in file if line.strip()), b"")
