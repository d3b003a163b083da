"""NVIDIA GeForce RTX 4090 D: a 4090 with 14 SMs fewer.

"Product page" is NVIDIA's page of the card; no whitepaper gives its peaks.
"""

from __future__ import annotations

from runner.cards import GIB, KIB, MIB, Card

CARD = Card(
    name="rtx4090d",
    title="GeForce RTX 4090 D",
    architecture="Ada Lovelace",
    chip="ad102",
    driver_names=("NVIDIA GeForce RTX 4090 D",),
    compute_capability=(8, 9),  # CUDA GPUs, developer.nvidia.com/cuda-gpus
    sms=114,  # product page: 14592 CUDA cores, 128 to an SM
    max_warps_per_sm=48,  # the guide
    max_programs_per_sm=24,  # the guide
    registers_per_sm=64 * KIB,  # the guide
    shared_bytes_per_sm=100 * KIB,  # the guide
    shared_bytes_per_program=99 * KIB,  # the guide
    l2_bytes=72 * MIB,  # same die and memory bus as the RTX 4090
    memory_bytes=24 * GIB,  # product page: 24 GB GDDR6X
    dram_gb_per_s=1008.0,  # product page: 384 bits at 21 Gbit/s
    l2_gb_per_s=None,  # not published
    peak_tflops={
        "fp32": 73.5,  # product page's boost clock of 2520 MHz x 114 SMs x 256 operations a clock
        "tf32": 73.5,  # the RTX 4090's rate per SM and clock: 256
        "fp16": 147.1,  # the RTX 4090's rate per SM and clock: 512
        "bf16": 147.1,  # the RTX 4090's rate per SM and clock: 512
        "fp16_acc16": 294.2,  # the RTX 4090's rate per SM and clock: 1024
        "fp8": 294.2,  # the RTX 4090's rate per SM and clock: 1024
    },
)
