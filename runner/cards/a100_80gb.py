"""NVIDIA A100 SXM4 80 GB; the PCIe boards have another bandwidth (1935 GB/s) and are other cards.

"Whitepaper" is NVIDIA A100 Tensor Core GPU Architecture, V1; "data sheet" is NVIDIA A100 Tensor Core GPU.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="a100_80gb",
    title="A100 SXM4 80 GB",
    architecture="Ampere",
    chip="ga100",
    driver_names=("NVIDIA A100-SXM4-80GB",),
    compute_capability=(8, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=108,  # whitepaper
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=164 * KIB,  # the guide
    shared_bytes_per_program=163 * KIB,  # the guide
    l2_bytes=40 * MIB,  # whitepaper: 40960 KB
    memory_bytes=80 * GIB,  # data sheet: 80 GB HBM2e
    dram_gb_per_s=2039.0,  # data sheet, SXM column
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 19.5,  # data sheet
        "tf32": 156.0,  # data sheet, without sparsity
        "fp16": 312.0,  # data sheet, without sparsity
        "bf16": 312.0,  # data sheet, without sparsity
        "fp16_acc16": 312.0,  # whitepaper: as with fp32 accumulation
    },
)
