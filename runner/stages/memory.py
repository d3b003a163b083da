"""Stage memory: every byte moved once, in full lines."""

from __future__ import annotations

from runner.stages import Metric, Stage

STAGE = Stage(
    focus="memory access",
    metrics=(
        Metric("dram__throughput.avg.pct_of_peak_sustained_elapsed", "> 60 % if bound by memory"),
        Metric("dram__bytes.sum", "near the fewest bytes of the workload"),
        Metric("lts__t_sector_hit_rate.pct"),
        Metric("l1tex__t_sector_hit_rate.pct"),
    ),
    rules=(
        "Neighbouring lanes read neighbouring addresses: the tile's fast axis is the tensor's last",
        "16 bytes a lane need contiguity and alignment that the compiler can prove",
        "Write each line of the output once and whole; strided stores cost a read of the rest",
        "Take divisions and remainders of addresses out of the K loop",
        "Mask only where a tile can cross an edge",
        "Order the programs so that those running together share inputs in L2",
        "64-bit offsets where a tensor has 2**31 elements or more, 32-bit ones elsewhere",
    ),
    safety=(
        "tl.multiple_of and tl.max_contiguous are promises: make them only where they always hold.",
        "A layout may change only inside the solution: inputs and outputs stay as they are.",
    ),
)
