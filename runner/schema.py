"""The nouns: frozen values that travel between the stages, standard library only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

#: Changed with anything that moves numbers; tables never mix two protocols.
PROTOCOL = 3
#: Changed with the layout of a record.
SCHEMA = 1

#: A field of a problem's `Shape`: a size, a flag, or a size per axis.
ShapeValue = int | bool | tuple[int, ...]
Shape = dict[str, ShapeValue]

#: The sweep of shapes that are drawn for one run.
HIDDEN = "hidden"

DTYPES = ("fp32", "fp16", "bf16")
MATHS = ("tf32", "fp32")


#: Levels of isolation of a contestant, the weakest first; below the last no stranger's file is ranked.
ISOLATION = ("none", "partial", "full")


class Status(StrEnum):
    """What became of a cell; only PASS has times."""

    PASS = "PASS"  # noqa: S105 - a verdict, no password
    WRONG = "WRONG"
    VIOLATION = "VIOLATION"
    MISSING = "MISSING"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"
    OOM = "OOM"
    BUILD = "BUILD"
    INVALID = "INVALID"
    UNSUPPORTED = "UNSUPPORTED"
    NOT_COVERED = "NOT_COVERED"
    ERROR = "ERROR"


#: Statuses that say nothing against a solution.
HARMLESS = (Status.PASS, Status.NOT_COVERED, Status.UNSUPPORTED, Status.ERROR)


#: A flag that begins so keeps a time out of every mean; the rest of it says why.
NOT_RANKED = "not_ranked"


class Verdict(StrEnum):
    """What an interval supports about a speed-up."""

    FASTER = "FASTER"
    SAME = "SAME"
    SLOWER = "SLOWER"
    UNRESOLVED = "UNRESOLVED"


@dataclass(frozen=True)
class Cell:
    """The unit that is checked and timed: one shape in one arithmetic."""

    sweep: str
    label: str
    shape: Shape
    dtype: str
    math: str

    @property
    def arithmetic(self) -> str:
        """`tf32` or `fp32` for fp32 tensors, else the dtype itself."""
        return self.math if self.dtype == "fp32" else self.dtype

    @property
    def key(self) -> str:
        """Identity within a solution's records; a hidden shape is drawn anew by each run."""
        if self.sweep == HIDDEN:
            return f"{self.sweep}/{self.label}/{self.dtype}/{self.math}"
        return f"{self.sweep}/{self.label}/{self.dtype}/{self.math}/{digest(self.shape)[:12]}"

    @property
    def spelled(self) -> str:
        """The shape as `--shapes` takes it, whatever sweep it is of: `batch=2,kernel_size=3x5`."""
        per_axis = {name: size if isinstance(size, tuple) else (size,) for name, size in self.shape.items()}
        return ",".join(f"{name}={'x'.join(map(str, sizes))}" for name, sizes in per_axis.items())


@dataclass(frozen=True)
class Launch:
    """One kernel launch as the contestant saw it (a claim).

    `arithmetic` has the classes that its PTX proposes (`runner.arithmetic`).
    """

    kernel: str
    grid: tuple[int, int, int]
    num_warps: int
    registers: int | None
    spills: int | None
    shared_bytes: int | None
    arithmetic: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel in a traced call, Triton's or not (a claim).

    `library` says who wrote it: `triton` for what Triton launched, a library's name, or nothing where nobody
    is known. `grid` and what follows are those of the first launch; a copy has none.
    """

    name: str
    library: str
    launches: int
    time_us: float
    grid: tuple[int, int, int]
    block_threads: int
    registers: int
    shared_bytes: int


@dataclass(frozen=True)
class PopulationError:
    """Errors of one population of outputs against float64, each beside its budget.

    `normwise` is the largest relative Frobenius error of a slice; `elementwise` the largest
    absolute error in units of the slice's RMS. The structural population is held to one
    rounding of the output dtype instead, so its `elementwise` is in units of that rounding.
    """

    population: str
    normwise: float
    normwise_budget: float
    elementwise: float
    elementwise_budget: float


#: What a contestant is granted unless more or less is asked for: seconds for a call, and bytes of the host's
#: memory, or half of what there is.
CALL_S = 60.0
MEMORY_BYTES = 8 * 2**30
#: Half-width of the interval, in log ratio, at which rounds may end, and half the margin that counts as SAME.
TARGET = 0.01
#: The stage of an ERROR that is the problem's own, not the harness's.
PROBLEM = "problem"


@dataclass(frozen=True)
class Failed:
    """Why a cell has no result. It has no field for times."""

    status: Status
    stage: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Checked:
    """A correct answer: the worst errors over all checked calls."""

    errors: tuple[PopulationError, ...]
    kernelbench_close: bool
    calls: int
    launches: tuple[Launch, ...]
    prepare_us: float | None = None


@dataclass(frozen=True)
class Samples:
    """Raw samples of one variant in the order of the rounds, in microseconds per call.

    `times_us` is the series that decides. It holds the device time by the contestant's own events where
    `Timed.clock` is `claim`, and then `bounds_us` has what the judge's clock gave and `claims_us` is empty;
    else it holds the judge's bound, and `claims_us` the contestant's word. A bound is the judge's window
    around `calls` calls less the null window of the same process, divided by `calls`. `issue_us` is the
    host's median time to issue a call, by the judge's clock where it could be told apart.

    `warm_us` (the same inputs again, in L2), `steady_us` (issued one after another, host included) and
    `graph_us` (captured once and replayed) are claims that decide nothing, `single_us` is the time of a call
    alone where `calls` are more; None where they were not taken, or by another clock than decides.
    """

    variant: str
    calls: int
    times_us: tuple[float, ...]
    claims_us: tuple[float, ...]
    null_us: float
    null_mad_us: float
    issue_us: float
    l2: str
    config: dict[str, Any] = field(default_factory=dict)
    bounds_us: tuple[float, ...] = ()
    process: int = 0
    warm_us: float | None = None
    steady_us: float | None = None
    graph_us: float | None = None
    single_us: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Speed-up of the solution over one baseline: above 1 is faster."""

    baseline: str
    speedup: float
    low: float
    high: float
    verdict: Verdict
    rounds: int


@dataclass(frozen=True)
class Timed:
    """What the rounds gave; every figure of a table is recomputed from `samples`.

    `rounds` are those of all processes: a ranked run has samples of several, told apart by their
    `process`. `clock` says whose clock decides, `claim` or `judge`. `sm_clocks_mhz` has the SM clock after
    each round where the driver tells it, `clock_reasons` NVML's reasons for it, a bit each; `disturbances`
    why rounds were run again, and how often. `batched` says that calls were cheaper together than alone, so
    that single ones were timed. `arithmetic` is the class of the solution's products, which its error
    decides; `kernels` are those that one call of each variant ran, the longest first. `target` is the
    half-width, in log ratio, at which rounds may end; `phases_s` says where the cell's wall time went
    (`runner.phases`).
    """

    samples: tuple[Samples, ...]
    headline: str
    rounds: int
    invalid_rounds: int
    checked_calls: int
    handshake_us: float
    clock: str = "judge"
    processes: int = 1
    sm_clocks_mhz: tuple[int, ...] = ()
    settled: bool = True
    disturbances: dict[str, int] = field(default_factory=dict)
    batched: bool = False
    arithmetic: str = ""
    kernels: dict[str, tuple[Kernel, ...]] = field(default_factory=dict)
    phases_s: dict[str, float] = field(default_factory=dict)
    clock_reasons: tuple[int, ...] = ()
    target: float = TARGET


@dataclass(frozen=True)
class Record:
    """One line of `results/`: everything needed to recompute a table row."""

    schema: int
    protocol: int
    time_utc: str
    problem: str
    problem_digest: str
    solution: str
    solution_digest: str
    technique: str
    author: str
    runner_digest: str
    cell: Cell
    card: str
    environment: dict[str, Any]
    entropy: str
    status: Status
    failed: Failed | None
    checked: Checked | None
    timed: Timed | None
    comparisons: tuple[Comparison, ...]
    roofline: dict[str, Any]
    waves: tuple[dict[str, Any], ...]
    flags: tuple[str, ...]


def digest(value: object) -> str:
    """Return the SHA-256 of a text, or of a value's canonical JSON."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(value: Any) -> Any:
    """Turn a frozen value into plain JSON types."""
    return asdict(value)
