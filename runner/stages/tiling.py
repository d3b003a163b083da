"""Stage tiling: blocks large enough to reuse what they load, small enough to fit."""

from __future__ import annotations

from runner.stages import Metric, Stage

STAGE = Stage(
    focus="block tiling",
    metrics=(
        Metric("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active", "> 50 %"),
        Metric("sm__warps_active.avg.pct_of_peak_sustained_active", "> 25 %"),
        Metric("launch__registers_per_thread", "< 255, where spills begin"),
        Metric("launch__occupancy_limit_registers", ">= 2"),
        Metric("launch__occupancy_limit_shared_mem", ">= 2"),
    ),
    rules=(
        "BLOCK_M, BLOCK_N and BLOCK_K are powers of two, for tl.dot 16 or more",
        "Larger tiles reuse more: BLOCK_M * BLOCK_N products for every BLOCK_M + BLOCK_N loaded values",
        "The accumulator takes BLOCK_M * BLOCK_N / (32 * num_warps) registers a thread: at most 128",
        "No extent much wider than its axis: masked lanes cost as much as others",
        "Fewer tiles than SMs leave SMs idle: then smaller tiles, or the K axis split over programs",
        "Change one extent at a time",
    ),
    safety=(
        "Mask every axis that its block does not divide.",
        "Keep accumulating in fp32.",
    ),
)
