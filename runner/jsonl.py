"""Lines of JSON that are no records: findings, comparisons, sums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.load import BadInput


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add to a file of JSON lines. Raises BadInput for one that cannot be written."""
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise BadInput(f"cannot write '{path}': {error.strerror}") from error
