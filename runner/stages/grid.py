"""Stage grid: enough programs, in the right order, to keep every SM busy to the end."""

from __future__ import annotations

from runner.stages import Metric, Stage

STAGE = Stage(
    focus="grid layout and parallelism",
    metrics=(
        Metric("sm__throughput.avg.pct_of_peak_sustained_elapsed", "> 60 %"),
        Metric("launch__grid_size"),
    ),
    rules=(
        "1D: (cdiv(N, BLOCK))",
        "2D: (cdiv(M, BLOCK_M), cdiv(N, BLOCK_N))",
        "3D: (batch, cdiv(M, BLOCK_M), cdiv(N, BLOCK_N))",
        "More than 3 axes: flatten only those that are independent",
        "Find parallelism in batch, head or expert before making BLOCK smaller",
        "Change the grid only if SM utilisation is clearly low",
    ),
    safety=("If unsure about correctness, do not change the grid.",),
)
