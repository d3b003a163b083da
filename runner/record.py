"""Records <-> JSON lines: the only way into `results/` and out of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from runner.decode import Malformed, decode
from runner.schema import DTYPES, MATHS, PROTOCOL, SCHEMA, Cell, Record, Status, digest, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from filelock import FileLock

#: A line as written, its newline included.
LINE_BYTES = 32 * 1024
#: A line as read: room for other writers, none for a file that is one endless line.
READ_LINE_BYTES = 1024 * 1024
#: A writer holds the lock of a file for one fsync, so a longer wait is a fault.
LOCK_TIMEOUT_S = 30.0
#: The way out where a results folder cannot be had and a command knows no better.
RESULTS_OPTION = "--results DIR"

SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class BadRecord(ValueError):
    """Why a line is not a record, or a record not a line."""


class ResultsUnwritable(RuntimeError):
    """A record could not be kept; everything recorded earlier is intact."""


class ResultsUnreadable(RuntimeError):
    """A results file or folder cannot be opened; it may hold records all the same."""


class ResultsBusy(RuntimeError):
    """Another run holds the results folder."""


def to_line(record: Record) -> str:
    """Return the record as one canonical line of ASCII JSON, without its newline.

    Times are rounded to 0.01 us. A record that would not fit in `LINE_BYTES` loses, in this order
    and only as far as needed, what the clock gave that does not decide, the ends of its texts, every
    second round of all variants alike, its launches, and more rounds; a flag names each loss.

    Raises `BadRecord` for what `from_line` would not accept.
    """
    line = _encode(record)
    shrinks: Iterable[Callable[[Record], Record]] = (
        *(_drop_other_clock, _cut_texts, _halve_rounds, _drop_launches),
        *[_halve_rounds] * 15,
    )
    for shrink in shrinks:
        if len(line) < LINE_BYTES:
            return line
        record = shrink(record)
        line = _encode(record)
    raise BadRecord(f"{len(line)} bytes and nothing left to thin out")


def from_line(text: str) -> Record:
    """Rebuild a record; unknown fields are ignored.

    Raises `BadRecord` for anything else than a record of this schema that agrees with itself.
    """
    try:
        data = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON: {error}") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise BadRecord("not a record: no 'schema'")
    if data["schema"] != SCHEMA:
        raise BadRecord(f"schema {data['schema']!r:.20}, this version reads {SCHEMA}")
    try:
        record: Record = decode(Record, data)
    except Malformed as error:
        raise BadRecord(str(error)) from None
    _check_consistent(record)
    return record


def files(results: Path, pattern: str = "*/*/*.jsonl") -> list[Path]:
    """Return the files of a results folder that match a pattern part by part, sorted; none if it is absent.

    Raises `ResultsUnreadable` for a folder that cannot be listed. `Path.glob` would pass over it, and over
    all that is recorded there.
    """
    found = [results]
    for part in pattern.split("/"):
        found = [path for folder in found for path in _listed(folder) if fnmatchcase(path.name, part)]
    return sorted(found)


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ResultsUnreadable(
            f"cannot list '{folder}': {error.strerror}; give permission there, or read elsewhere: "
            f"{RESULTS_OPTION}"
        ) from error


def read(path: Path) -> tuple[list[Record], list[str]]:
    """Read a results file: its records, and one `FILE:LINE: reason` for each line that is none.

    Of several records with one resume key the last by `recency` counts. A file that does not exist
    has no records; what it contains never raises, only failing to open it does (`ResultsUnreadable`).
    """
    kept: dict[str, Record] = {}
    problems: list[str] = []
    for where, outcome in _scan(path, absent=True):
        if isinstance(outcome, BadRecord):
            problems.append(f"{where}: {outcome}")
            continue
        key = resume_key(outcome)
        if key not in kept or recency(outcome) >= recency(kept[key]):
            kept[key] = outcome
    return list(kept.values()), problems


def recency(record: Record) -> tuple[bool, str]:
    """Order records of one cell; the last counts, so a PASS does not outlive a later failure.

    ERROR is no verdict, so it comes before any. By time, not by line: `import` appends what may be older.
    """
    return record.status is not Status.ERROR, record.time_utc


def append(path: Path, record: Record, elsewhere: str = RESULTS_OPTION) -> None:
    """Add one record durably: it is on the disk when this returns, whole, or the file is as before.

    Raises `ResultsUnwritable` (folder, disk or lock; it names the option `elsewhere`) and `BadRecord`.
    """
    line = to_line(record).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_name(f".{path.name}.lock"), LOCK_TIMEOUT_S):
            if not path.exists():
                path.touch()
                _sync_folder(path.parent)
            _append_bytes(path, line)
    except OSError as error:
        raise _unwritable(path, error, elsewhere) from error


def planned_key(
    *,
    problem: str,
    problem_digest: str,
    solution: str,
    solution_digest: str,
    cell: Cell,
    card: str,
    environment: dict[str, Any],
    protocol: int = PROTOCOL,
) -> str:
    """Return the resume key that a cell's record will have; of the environment only versions count."""
    versions = {name: environment.get(name) for name in ("driver", "torch", "triton", "cudnn")}
    return digest([problem, problem_digest, solution, solution_digest, cell.key, card, protocol, versions])


def resume_key(record: Record) -> str:
    """Identify what was measured with what: two records with one key are repeats."""
    return planned_key(
        problem=record.problem,
        problem_digest=record.problem_digest,
        solution=record.solution,
        solution_digest=record.solution_digest,
        cell=record.cell,
        card=record.card,
        environment=record.environment,
        protocol=record.protocol,
    )


def done(records: Iterable[Record]) -> dict[str, Record]:
    """Return by key what needs no further run; ERROR is the harness's fault, so it is tried again."""
    return {resume_key(record): record for record in records if record.status is not Status.ERROR}


def results_path(root: Path, card: str, problem: str, solution: str) -> Path:
    """Return `root/card/problem/solution.jsonl`; raises ValueError for a name that is unsafe in a path."""
    for name in (card, problem, solution):
        if not SAFE_NAME.fullmatch(name):
            raise ValueError(f"{name!r:.60} cannot name a results file: use letters, digits, '.', '_', '-'")
    return root / card / problem / f"{solution}.jsonl"


def import_file(source: Path, root: Path) -> tuple[int, int, list[str]]:
    """Sort the records of `source` into `root`: numbers added and skipped, and problems as in `read`.

    A record with the resume key and time of one that is there is skipped, so importing twice is
    harmless. Raises `ResultsUnreadable` and `ResultsUnwritable`.
    """
    added, skipped = 0, 0
    problems: list[str] = []
    present: dict[Path, set[tuple[str, str]]] = {}
    for where, outcome in _scan(source):
        try:
            fresh = _import_record(outcome, root, present)
        except ValueError as error:
            problems.append(f"{where}: {error}")
        else:
            added += fresh
            skipped += not fresh
    return added, skipped, problems


def lock_results(root: Path, elsewhere: str = RESULTS_OPTION) -> contextlib.AbstractContextManager[None]:
    """Hold a results folder for a whole run; the kernel lets go of it however the process ends.

    Raises `ResultsBusy` at once if another run holds it, and `ResultsUnwritable`; both name the option
    `elsewhere` as the way out.
    """
    return _hold(root, root / ".lock", elsewhere)


def lock_output(path: Path, elsewhere: str) -> contextlib.AbstractContextManager[None]:
    """Hold the one file of a run with `-o`, as `lock_results` holds a folder."""
    return _hold(path, path.with_name(f".{path.name}.run"), elsewhere)


@contextlib.contextmanager
def _hold(held: Path, lock_path: Path, elsewhere: str) -> Iterator[None]:
    from filelock import Timeout  # noqa: PLC0415 -- 45 ms that `--help` need not pay

    # A file of its own: some versions of filelock empty the lock file before they fail to lock it.
    pid_path = lock_path.with_name(f"{lock_path.name}.pid")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(lock_path, 0.0)
        lock.acquire()
    except Timeout:
        raise ResultsBusy(
            f"{held} is in use by another run{_holder(pid_path)}; wait for it or write elsewhere: {elsewhere}"
        ) from None
    except OSError as error:
        raise _unwritable(held, error, elsewhere) from error
    try:
        with contextlib.suppress(OSError):  # the pid is a courtesy
            pid_path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            pid_path.unlink()
        lock.release()


def _lock(path: Path, timeout_s: float) -> FileLock:
    from filelock import FileLock  # noqa: PLC0415 -- 45 ms that `--help` need not pay

    path.touch()  # where no file can be made, filelock would say that another process has the lock
    return FileLock(path, timeout=timeout_s)


def _encode(record: Record) -> str:
    """Return the canonical JSON of a consistent record."""
    _check_consistent(record)
    try:
        return json.dumps(_rounded(to_json(record)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRecord(f"not JSON: {error}") from None


def _rounded(value: Any, name: str = "") -> Any:
    """Round every float under a name that ends in `_us` to 0.01, or to 0.001 below 10.

    A time of 3 us to 0.01 would be off by more than an interval may be narrow.
    """
    if isinstance(value, dict):
        return {key: _rounded(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, name) for item in value]
    if isinstance(value, float) and name.endswith("_us"):
        return round(value, 3 if abs(value) < 10 else 2)
    return value


def _flagged(record: Record, flag: str, **changes: Any) -> Record:
    flags = record.flags if flag in record.flags else (*record.flags, flag)
    return replace(record, flags=flags, **changes)


def _drop_other_clock(record: Record) -> Record:
    if record.timed is None or not any(one.claims_us or one.bounds_us for one in record.timed.samples):
        return record
    samples = tuple(replace(one, claims_us=(), bounds_us=()) for one in record.timed.samples)
    flag = "bounds_dropped" if record.timed.clock == "claim" else "claims_dropped"
    return _flagged(record, flag, timed=replace(record.timed, samples=samples))


def _cut_texts(record: Record) -> Record:
    """Cut what a solution can make long: technique, author, the detail of a failure, the list of launches."""
    failed, checked = record.failed, record.checked
    if failed is not None:
        failed = replace(failed, detail=failed.detail[:2000])
    if checked is not None:
        checked = replace(checked, launches=checked.launches[:32])
    cut = {
        "technique": record.technique[:200],
        "author": record.author[:200],
        "failed": failed,
        "checked": checked,
        "waves": record.waves[:32],
    }
    if all(getattr(record, name) == value for name, value in cut.items()):
        return record
    return _flagged(record, "texts_cut", **cut)


def _drop_launches(record: Record) -> Record:
    """Leave out what names kernels: a solution may give them names that fill a line."""
    checked = None if record.checked is None else replace(record.checked, launches=())
    timed = None if record.timed is None else replace(record.timed, kernels={})
    if (checked, timed, record.waves) == (record.checked, record.timed, ()):
        return record
    return _flagged(record, "launches_dropped", checked=checked, timed=timed, waves=())


def _halve_rounds(record: Record) -> Record:
    """Keep rounds 0, 2, 4... of every variant, so that what is left is still paired."""
    if record.timed is None:
        return record
    samples = tuple(replace(one, times_us=one.times_us[::2]) for one in record.timed.samples)
    return _flagged(record, "samples_thinned", timed=replace(record.timed, samples=samples))


def _check_consistent(record: Record) -> None:
    """Raise `BadRecord` for an unknown arithmetic, and where the status contradicts what the record holds."""
    for name, value, known in (("dtype", record.cell.dtype, DTYPES), ("math", record.cell.math, MATHS)):
        if value not in known:
            raise BadRecord(f"cell.{name}: {value!r:.40} is none of {', '.join(known)}")
    passed = record.status is Status.PASS
    if passed != (record.failed is None) or (record.failed and record.failed.status is not record.status):
        raise BadRecord(f"status {record.status} disagrees with 'failed'")
    if passed and record.checked is None:
        raise BadRecord("PASS without a check")
    if not passed and (record.timed or record.comparisons):
        raise BadRecord(f"status {record.status} has times")


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _scan(path: Path, *, absent: bool = False) -> Iterator[tuple[str, Record | BadRecord]]:
    """Yield `FILE:LINE` with the record there or the reason why there is none; skip empty lines.

    A file that may be `absent` has no lines then. Only opening it tells that from one out of reach.
    """
    try:
        opened = path.open("rb")
    except FileNotFoundError as error:
        if absent:
            return
        raise ResultsUnreadable(f"cannot read '{path}': {error.strerror}") from error
    except OSError as error:
        raise ResultsUnreadable(f"cannot read '{path}': {error.strerror}") from error
    with opened as file:
        number = 0
        while line := file.readline(READ_LINE_BYTES + 1):
            number += 1
            huge = len(line) > READ_LINE_BYTES
            while huge and not line.endswith(b"\n") and (rest := file.readline(READ_LINE_BYTES)):
                line = rest
            if huge or line.strip():
                outcome = BadRecord("longer than 1 MiB") if huge else _decode(line)
                yield f"{path}:{number}", outcome


def _decode(line: bytes) -> Record | BadRecord:
    try:
        return from_line(line.decode())
    except UnicodeDecodeError:
        return BadRecord("not UTF-8")
    except BadRecord as error:
        torn = "" if line.endswith(b"\n") else "torn last line, its cell will be run again: "
        return BadRecord(f"{torn}{error}")


def _append_bytes(path: Path, line: bytes) -> None:
    """Write and sync `line` at the end of a file; on any failure cut the file back to what it was."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes and os.pread(descriptor, 1, size_bytes - 1) != b"\n":
            line = b"\n" + line  # the last writer was killed in the middle of a line
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size_bytes)
            raise
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(path: Path, error: OSError, elsewhere: str) -> ResultsUnwritable:
    reason = error.strerror or str(error)
    return ResultsUnwritable(
        f"cannot write {path}: {reason}; make room or give permission there, or write elsewhere: {elsewhere}"
    )


def _identities(path: Path) -> set[tuple[str, str]]:
    outcomes = (outcome for _, outcome in _scan(path, absent=True))
    return {_identity(outcome) for outcome in outcomes if isinstance(outcome, Record)}


def _identity(record: Record) -> tuple[str, str]:
    return resume_key(record), record.time_utc


def _import_record(
    outcome: Record | BadRecord, root: Path, present: dict[Path, set[tuple[str, str]]]
) -> bool:
    """Append a record unless its file has it; `present` remembers what each file holds."""
    if isinstance(outcome, BadRecord):
        raise outcome
    path, identity = results_path(root, outcome.card, outcome.problem, outcome.solution), _identity(outcome)
    if path not in present:
        present[path] = _identities(path)
    if identity in present[path]:
        return False
    append(path, outcome)
    present[path].add(identity)
    return True


def _holder(pid_path: Path) -> str:
    """Return ` (pid N)` where the holder could leave its pid."""
    with contextlib.suppress(OSError, ValueError):
        return f" (pid {int(pid_path.read_text())})"
    return ""
