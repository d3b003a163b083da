# make run, make test: everything else follows from them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Only a machine with an NVIDIA driver needs the CUDA build of PyTorch (several GB).
GPU := $(wildcard /dev/nvidiactl)
TORCH := 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: run test lint types clean

run: $(VENV)/ready
	$(BIN)/python -m runner --problem convtranspose2d --solution gather_gemm --solution phase_gemm

test: $(VENV)/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not gpu and not browser"

lint: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/ready
	$(BIN)/mypy

$(VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit("KernelWave needs Python 3.11 or later: make PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
ifeq ($(GPU),)
	@# a CPU build from wherever pip looks, or from PyTorch's own index
	$(BIN)/pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(BIN)/pip install --quiet "torch==$(TORCH)" --index-url $(TORCH_CPU_INDEX)
endif
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build kernelwave.egg-info .mypy_cache .ruff_cache .benchmarks .hypothesis
