"""NVIDIA H200 SXM 141 GB.

"Data sheet" is NVIDIA H200 Tensor Core GPU; its compute is the H100 SXM5's, whose whitepaper
(NVIDIA H100 Tensor Core GPU Architecture, V1.04) gives the unrounded peaks.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="h200",
    title="H200 SXM 141 GB",
    architecture="Hopper",
    chip="gh100",
    driver_names=("NVIDIA H200",),
    compute_capability=(9, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=132,  # the driver, torch.cuda.get_device_properties
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=228 * KIB,  # the guide
    shared_bytes_per_program=227 * KIB,  # the guide
    l2_bytes=60 * MIB,  # the driver, torch.cuda.get_device_properties
    memory_bytes=141 * GIB,  # data sheet: 141 GB HBM3e
    dram_gb_per_s=4800.0,  # data sheet: 4.8 TB/s
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 66.9,  # whitepaper; data sheet: 67
        "tf32": 494.7,  # whitepaper; data sheet: 989 with sparsity
        "fp16": 989.4,  # whitepaper; data sheet: 1979 with sparsity
        "bf16": 989.4,  # whitepaper; data sheet: 1979 with sparsity
        "fp16_acc16": 989.4,  # whitepaper: as with fp32 accumulation
        "fp8": 1978.9,  # whitepaper; data sheet: 3958 with sparsity
    },
)
