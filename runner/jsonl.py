"""Lines of JSON that are no records: findings, comparisons, sums."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.load import BadInput


def append(path: Path, findings: Sequence[dict[str, Any]]) -> None:
    """Add findings to a file of JSON lines. Raises BadInput for one that cannot be written."""
    try:
        with path.open("a") as file:
            file.writelines(json.dumps(finding) + "\n" for finding in findings)
    except OSError as error:
        raise BadInput(f"cannot write '{path}': {error.strerror}") from error
