"""Where a cell's wall time goes: seconds by phase, taken before and after whatever is timed."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

ROUNDS = "rounds"
#: Of the rounds, the time in which the device had work.
BUSY = "busy_in_rounds"
#: From the first phase to the last, with what lies between them.
CELL = "cell"


class Phases:
    """Adds up the phases of one cell; a phase may come again, and none lies within another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.begun_s = clock()
        self.spent_s: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time until the end of the block, however it ends."""
        begun_s = self.clock()
        try:
            yield
        finally:
            self.add(name, self.clock() - begun_s)

    def add(self, name: str, seconds: float) -> None:
        """Add to a phase."""
        self.spent_s[name] += seconds

    def so_far(self) -> dict[str, float]:
        """Return seconds by phase, to the millisecond, and those of the whole cell."""
        spent_s = {**self.spent_s, CELL: self.clock() - self.begun_s}
        return {name: round(seconds, 3) for name, seconds in spent_s.items()}
