"""NVIDIA L40S.

"Data sheet" is NVIDIA L40S; "whitepaper" is NVIDIA Ada GPU Architecture, V2.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="l40s",
    title="L40S",
    architecture="Ada Lovelace",
    chip="ad102",
    driver_names=("NVIDIA L40S",),
    compute_capability=(8, 9),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=142,  # data sheet: 18176 CUDA cores, 128 to an SM
    max_warps_per_sm=48,  # the guide
    max_programs_per_sm=24,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=100 * KIB,  # the guide
    shared_bytes_per_program=99 * KIB,  # the guide
    l2_bytes=96 * MIB,  # whitepaper: 98304 KB on a whole AD102
    memory_bytes=48 * GIB,  # data sheet: 48 GB GDDR6
    dram_gb_per_s=864.0,  # data sheet
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 91.6,  # data sheet
        "tf32": 183.0,  # data sheet, without sparsity
        "fp16": 362.05,  # data sheet, without sparsity
        "bf16": 362.05,  # data sheet, without sparsity
        "fp8": 733.0,  # data sheet, without sparsity
    },
)
