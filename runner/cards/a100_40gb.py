"""NVIDIA A100 SXM4 40 GB; the PCIe boards have other power limits and are other cards.

"Whitepaper" is NVIDIA A100 Tensor Core GPU Architecture, V1.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="a100_40gb",
    title="A100 SXM4 40 GB",
    architecture="Ampere",
    chip="ga100",
    driver_names=("NVIDIA A100-SXM4-40GB",),
    compute_capability=(8, 0),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=108,  # whitepaper
    max_warps_per_sm=64,  # the guide
    max_programs_per_sm=32,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=164 * KIB,  # the guide
    shared_bytes_per_program=163 * KIB,  # the guide
    l2_bytes=40 * MIB,  # whitepaper: 40960 KB
    memory_bytes=40 * GIB,  # whitepaper: 40 GB HBM2
    dram_gb_per_s=1555.0,  # whitepaper
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 19.5,  # whitepaper
        "tf32": 156.0,  # whitepaper
        "fp16": 312.0,  # whitepaper
        "bf16": 312.0,  # whitepaper
        "fp16_acc16": 312.0,  # whitepaper: as with fp32 accumulation
    },
)
