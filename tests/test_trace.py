"""Kernels of a call, from made-up chrome traces; on a CPU there are none, and nothing is raised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runner.contestant import trace
from runner.contestant.trace import MAX_KERNELS, NAME_CHARS, library_of, shorten, summarise


def event(name: str, us: float = 1.0, **facts: Any) -> dict[str, Any]:
    """Return an event as PyTorch 2.11 writes it."""
    args = {"grid": [50880, 1, 1], "block": [128, 1, 1], "registers per thread": 128, "shared memory": 26624}
    return {"ph": "X", "cat": "kernel", "name": name, "ts": 1.5, "dur": us, "args": {**args, **facts}}


COPY = {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy DtoD (Device -> Device)", "dur": 2.0, "args": {}}
OTHER = [
    {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 5.0, "args": {}},
    {"ph": "f", "cat": "ac2g", "name": "ac2g", "id": 7},
]


def test_launches_of_one_name_are_one_kernel_and_the_longest_comes_first() -> None:
    events = [*OTHER, event("mine", 1.25), COPY, event("void at::native::f<4>(int)", 9.0), event("mine", 1.0)]
    first, second, third = summarise(events, {"mine"})
    assert (first.name, first.library, first.time_ns) == ("at::native::f<4>", "pytorch", 9000)
    assert (second.name, second.library, second.launches, second.time_ns) == ("mine", "triton", 2, 2250)
    assert (second.grid, second.block_threads) == ((50880, 1, 1), 128)
    assert (second.registers, second.shared_bytes) == (128, 26624)
    assert (third.name, third.library, third.grid) == ("Memcpy DtoD", "cuda", (0, 0, 0))


@given(st.lists(st.floats(0.01, 1e5), max_size=50), st.integers(1, MAX_KERNELS + 9))
def test_no_time_and_no_launch_is_lost_to_the_limit(times_us: list[float], names: int) -> None:
    times_us = [*times_us, *range(1, names + 1)]
    found = summarise([event(f"kernel_{index % names}", us) for index, us in enumerate(times_us)], ())
    assert len(found) == min(names, MAX_KERNELS)
    assert sum(kernel.launches for kernel in found) == len(times_us)
    assert sum(kernel.time_ns for kernel in found) == sum(round(us * 1e3) for us in times_us)
    named = [kernel.time_ns for kernel in found if kernel.name != "(others)"]
    assert named == sorted(named, reverse=True)


WRITTEN = {
    "void cudnn::ops::nchwToNhwcKernel<float, float, true, (cudnnKernelDataType_t)2>(int)": "cudnn",
    "sm80_xmma_fprop_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nchw_tilesize128x128x16_stage4": "cudnn",
    "cutlass__5x_cudnn::Kernel<cutlass_tensorop_s1688dgrad_optimized_tf32_128x128_16x4>": "cudnn",
    "void dgrad_engine<float, 512, 6, 5, 3, 3, 3, false>(int, int, int, float const*)": "cudnn",
    "void wgrad_alg0_engine<float, 128, 5, 5, 3, 3, 3, false, 512>(int, int)": "cudnn",
    "void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3, 3, 3, 1, false, false, true>(int)": "cudnn",
    "ampere_sgemm_128x64_nn": "cublas",
    "ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_nn": "cublas",
    "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT": "cublas",
    "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x32": "cublas",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>(cublasLt::cublasSplitKParams<float>)": "cublas",
    "void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4>(int)": "cublas",
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_64x64_32x6_nn_align4>(Params)": "cutlass",
    "void regular_fft<64u, EPT<8u>, 8u, 8u>(kernel_arguments_t<unsigned int>)": "cufft",
    "triton_poi_fused_convolution_relu_0": "inductor",
    "triton_tem_fused_convolution_3": "inductor",
    "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int)": "pytorch",
    "_ZN2at6native29vectorized_elementwise_kernelILi4EEEvi": "pytorch",
    "void at_cuda_detail::cub::DeviceReduceKernel<Policy>(int*)": "pytorch",
    "void cub::DeviceScanKernel<Policy>(int*)": "cub",
}
# what authors call their own CUDA kernels
OWN = [
    "winograd_kernel",
    "sm90_gemm",
    "void gemm_nt<64>(float*)",
    "dgrad",
    "conv2d_dgrad_kernel",
    "copy(float*)",
]


@pytest.mark.parametrize("name", WRITTEN, ids=lambda name: shorten(name)[:40])
def test_a_library_is_known_by_the_names_of_its_kernels(name: str) -> None:
    (kernel,) = summarise([event(name)], ())
    assert kernel.library == WRITTEN[name]
    assert library_of(name, {name[:120]}) == "triton"


@pytest.mark.parametrize("name", OWN)
def test_an_own_kernel_is_no_librarys(name: str) -> None:
    assert library_of(shorten(name), ()) == ""


SHORT = {
    "void f<(bool)1, g(int)>(float*, int)": "f<(bool)1, g(int)>",
    "void (anonymous namespace)::f<int>(int)": "f<int>",
    "a::(anonymous namespace)::b(int) [clone .k]": "a::b",
    "Memset (Device)": "Memset",
    "(odd)": "(odd)",
    "triton_kernel": "triton_kernel",
    "x" * 300: "x" * (NAME_CHARS - 3) + "...",
}


@pytest.mark.parametrize("name", SHORT, ids=lambda name: name[:30])
def test_a_name_keeps_what_tells_it_from_others(name: str) -> None:
    assert shorten(name) == SHORT[name]


@given(st.text(max_size=400))
def test_any_name_is_cut(name: str) -> None:
    assert len(shorten(name)) <= NAME_CHARS


class Profiler:
    """Stands in for PyTorch's where there is no device; `text` is the trace that it exports."""

    text = json.dumps({"traceEvents": [*OTHER, event("mine")]})

    def __init__(self, **_: object) -> None:
        self.text = type(self).text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def export_chrome_trace(self, path: str) -> None:
        Path(path).write_text(self.text)


def answer(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def leave(_: torch.Tensor) -> None:
    raise SystemExit(3)


REASONS = {
    "": (answer, Profiler.text),
    "CUPTI saw no kernel": (answer, json.dumps({"traceEvents": OTHER})),
    "SystemExit: 3": (leave, Profiler.text),
    "JSONDecodeError": (answer, Profiler.text[:-4]),
    "KeyError: 'traceEvents'": (answer, "{}"),
    "AttributeError": (answer, '{"traceEvents": [3]}'),
}


@pytest.mark.parametrize("reason", REASONS, ids=lambda reason: reason or "kernels")
def test_there_are_kernels_or_a_reason(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, text = REASONS[reason]
    monkeypatch.setattr(trace, "profile", Profiler)
    monkeypatch.setattr(Profiler, "text", text)
    found, said = trace.kernels(forward, [torch.ones(2)], tmp_path)
    assert [kernel.name for kernel in found] == ([] if reason else ["mine"])
    assert said.startswith(reason)
    assert bool(said) is bool(reason)
    assert list(tmp_path.iterdir()) == []


def test_without_a_device_there_is_a_reason(tmp_path: Path) -> None:
    found, reason = trace.kernels(answer, [torch.ones(2)], tmp_path)
    assert found == []
    assert reason
