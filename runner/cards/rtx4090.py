"""NVIDIA GeForce RTX 4090.

"Whitepaper" is NVIDIA Ada GPU Architecture, V2, appendix A.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="rtx4090",
    title="GeForce RTX 4090",
    architecture="Ada Lovelace",
    chip="ad102",
    driver_names=("NVIDIA GeForce RTX 4090",),
    compute_capability=(8, 9),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=128,  # whitepaper
    max_warps_per_sm=48,  # the guide
    max_programs_per_sm=24,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=100 * KIB,  # the guide
    shared_bytes_per_program=99 * KIB,  # the guide
    l2_bytes=72 * MIB,  # whitepaper: 73728 KB
    memory_bytes=24 * GIB,  # whitepaper: 24 GB GDDR6X
    dram_gb_per_s=1008.0,  # whitepaper: 384 bits at 21 Gbit/s
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 82.6,  # whitepaper, at the boost clock of 2520 MHz
        "tf32": 82.6,  # whitepaper
        "fp16": 165.2,  # whitepaper
        "bf16": 165.2,  # whitepaper
        "fp16_acc16": 330.3,  # whitepaper
        "fp8": 330.3,  # whitepaper; 660.6 is with fp16 accumulation
    },
)
