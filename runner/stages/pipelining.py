"""Stage pipelining: loads of the next K steps in flight while this one multiplies."""

from __future__ import annotations

from runner.stages import Metric, Stage

STAGE = Stage(
    focus="software pipelining and latency",
    metrics=(
        Metric("smsp__warp_issue_stalled_long_scoreboard_per_warp_active.pct", "< 30 %"),
        Metric("sm__warps_active.avg.pct_of_peak_sustained_active"),
        Metric("launch__shared_mem_per_block_dynamic"),
        Metric("launch__registers_per_thread", "< 255, where spills begin"),
    ),
    rules=(
        "2 to 4 num_stages, each a K tile in flight: (BLOCK_M + BLOCK_N) * BLOCK_K values of shared memory",
        "num_warps 4 or 8; more warps share the accumulator and hide latency, fewer leave more registers",
        "Loads of an iteration depend on its number alone, not on values loaded or computed before",
        "A K loop of one or two steps has nothing to overlap: more programs per SM hide its latency instead",
        "Where shared memory limits programs per SM, a stage less may be faster",
    ),
    safety=(
        "Shared memory of a program stays below the card's limit, or the launch fails.",
        "Do not change tiles and grid in the same step.",
    ),
)
