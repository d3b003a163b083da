"""NVIDIA H100 SXM5 80 GB.

"Whitepaper" is NVIDIA H100 Tensor Core GPU Architecture, V1.04; "data sheet" is NVIDIA H100 Tensor Core GPU.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="h100_sxm",
    title="H100 SXM5 80 GB",
    architecture="Hopper",
    chip="gh100",
    driver_names=("NVIDIA H100 80GB HBM3",),
    compute_capability=(9, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=132,  # whitepaper
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=228 * KIB,  # the guide
    shared_bytes_per_program=227 * KIB,  # the guide
    l2_bytes=50 * MIB,  # whitepaper: 50 MB, and what the driver reports
    memory_bytes=80 * GIB,  # data sheet: 80 GB
    dram_gb_per_s=3350.0,  # data sheet: 3.35 TB/s
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 66.9,  # whitepaper
        "tf32": 494.7,  # whitepaper
        "fp16": 989.4,  # whitepaper
        "bf16": 989.4,  # whitepaper
        "fp16_acc16": 989.4,  # whitepaper: as with fp32 accumulation
        "fp8": 1978.9,  # whitepaper
    },
)
