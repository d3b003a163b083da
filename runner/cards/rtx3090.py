"""NVIDIA GeForce RTX 3090.

"Whitepaper" is NVIDIA Ampere GA102 GPU Architecture, V2, appendix A.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="rtx3090",
    title="GeForce RTX 3090",
    architecture="Ampere",
    chip="ga102",
    driver_names=("NVIDIA GeForce RTX 3090",),
    compute_capability=(8, 6),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=82,  # whitepaper
    max_warps_per_sm=48,  # the guide
    max_programs_per_sm=16,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=100 * KIB,  # the guide
    shared_bytes_per_program=99 * KIB,  # the guide
    l2_bytes=6 * MIB,  # whitepaper: 6144 KB
    memory_bytes=24 * GIB,  # whitepaper: 24 GB GDDR6X
    dram_gb_per_s=936.0,  # whitepaper
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 35.6,  # whitepaper, at the boost clock of 1695 MHz
        "tf32": 35.6,  # whitepaper
        "fp16": 71.0,  # whitepaper
        "bf16": 71.0,  # whitepaper
        "fp16_acc16": 142.0,  # whitepaper
    },
)
