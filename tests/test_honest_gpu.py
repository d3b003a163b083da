"""Honest kernels on a GPU, timed as any other: none may be refused there either."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_exploits_gpu import RECORDS, run
from test_honest import FILES, FOLDER, PROBLEM

from runner import lint

if TYPE_CHECKING:
    from runner.schema import Record

GPU_FILES = sorted((FOLDER / "gpu").glob("*.py"))
#: Files that a CPU alone can run, or that another file stands for here.
NOT_ON_A_GPU = {
    "compiles_c": "its C reads pointers of the host; compiles_cuda",
    "returns_views": "allocates on the host; returns_views_of_one_allocation",
    "reuses_a_workspace": "answers all calls of a batch in one tensor; keeps_a_workspace",
    "sets_its_own_switches": "cuBLAS refuses determinism without a variable; sets_switches_of_cuda",
}
#: Passes without a time: its calls do not count.
UNTIMED = {"empties_the_cache": "its outputs lie where none lay before"}
NEEDS_NVCC = {"compiles_cuda"}
HONEST = [file for file in FILES if file.stem not in NOT_ON_A_GPU] + GPU_FILES


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    nvcc = shutil.which("nvcc") is not None
    files = [file for file in HONEST if nvcc or file.stem not in NEEDS_NVCC]
    folder = Path(os.environ.get(RECORDS) or tmp_path_factory.mktemp("records"))
    return run(files, PROBLEM, "square", folder)


@pytest.mark.gpu
@pytest.mark.parametrize("file", HONEST, ids=lambda file: file.stem)
def test_an_honest_kernel_passes_and_is_timed(file: Path, records: dict[str, Record]) -> None:
    if file.stem not in records:
        pytest.skip("needs nvcc")
    one = records[file.stem]
    assert one.failed is None
    assert one.timed is not None or file.stem in UNTIMED, one.flags


@pytest.mark.parametrize("file", GPU_FILES, ids=lambda file: file.stem)
def test_the_lint_advises_and_stops_nothing(file: Path) -> None:
    assert {finding.severity for finding in lint.lint(file.read_text())} <= {lint.ADVICE}


def test_what_is_left_out_exists_and_has_a_substitute() -> None:
    names = {file.stem for file in GPU_FILES}
    assert NOT_ON_A_GPU.keys() <= {file.stem for file in FILES}
    assert {reason.rpartition("; ")[2] for reason in NOT_ON_A_GPU.values()} <= names
