"""NVIDIA H100 PCIe 80 GB.

"Whitepaper" is NVIDIA H100 Tensor Core GPU Architecture, V1.04; "data sheet" is NVIDIA H100 Tensor Core GPU.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="h100_pcie",
    title="H100 PCIe 80 GB",
    architecture="Hopper",
    chip="gh100",
    driver_names=("NVIDIA H100 PCIe",),
    compute_capability=(9, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=114,  # whitepaper
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=228 * KIB,  # the guide
    shared_bytes_per_program=227 * KIB,  # the guide
    l2_bytes=50 * MIB,  # whitepaper: 50 MB
    memory_bytes=80 * GIB,  # data sheet: 80 GB
    dram_gb_per_s=2000.0,  # data sheet: 2 TB/s
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 51.0,  # data sheet
        "tf32": 378.0,  # data sheet: 756 with sparsity
        "fp16": 756.5,  # data sheet: 1513 with sparsity
        "bf16": 756.5,  # data sheet: 1513 with sparsity
        "fp16_acc16": 756.5,  # whitepaper: as with fp32 accumulation
        "fp8": 1513.0,  # data sheet: 3026 with sparsity
    },
)
