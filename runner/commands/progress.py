"""Progress on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from runner.pipeline import TEXT, Event


@contextlib.contextmanager
def shown(device: str) -> Iterator[Callable[[Event], None]]:
    """Yield what shows progress: a bar on a terminal, which it leaves as it was, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield plain
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(device, total=None)

    def watch(event: Event) -> None:
        job, done = event.job, event.index + (event.record is not None)
        text = f"{job.solution.name} {job.cell.sweep}/{job.cell.label} {job.cell.arithmetic}"
        progress.update(task, total=event.total, completed=done, description=text)

    with progress:
        yield watch


def plain(event: Event) -> None:
    """Print a line for each new record; what is wrong with a text was said once, before them all."""
    job, made = event.job, event.record
    if made is None or event.resumed or (made.failed and made.failed.stage == TEXT):
        return
    reason = f": {made.failed.reason}" if made.failed else ""
    place = f"{job.solution.name} {job.cell.sweep}/{job.cell.label} {job.cell.arithmetic}"
    print(f"[{event.index + 1}/{event.total}] {place} {made.status}{reason}", file=sys.stderr)
