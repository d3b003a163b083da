"""NVIDIA B200 SXM 180 GB.

"Data sheet" is NVIDIA Blackwell, individual GPU specifications, column HGX B200;
"the driver" is cudaGetDeviceProperties as printed in pytorch/ao pull request 4002.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="b200",
    title="B200 SXM 180 GB",
    architecture="Blackwell",
    chip="gb100",
    driver_names=("NVIDIA B200",),
    compute_capability=(10, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=148,  # the driver
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=228 * KIB,  # the guide
    shared_bytes_per_program=227 * KIB,  # the guide
    l2_bytes=126 * MIB + 512 * KIB,  # the driver; Blackwell Tuning Guide: 126 MB
    memory_bytes=180 * GIB,  # data sheet: 180 GB HBM3e
    dram_gb_per_s=7700.0,  # data sheet: 7.7 TB/s; the driver: 7680 bits at 3996 MHz
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 75.0,  # data sheet
        "tf32": 1100.0,  # data sheet: 2.2 PFLOPS with sparsity
        "fp16": 2250.0,  # data sheet: 4.5 PFLOPS with sparsity
        "bf16": 2250.0,  # data sheet: 4.5 PFLOPS with sparsity
        "fp8": 4500.0,  # data sheet: 9 PFLOPS with sparsity
    },
)
