"""Each rule with code it must catch and honest code it must leave alone."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.lint import RULES, Header, lint, read_header
from runner.schema import DTYPES, MATHS

HONEST = '''
"""Gather every output pixel's taps in one GEMM.

author: A. Contributor
notes: 64x64x32 tiles
"""
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn

MATH = ("tf32",)
BLOCK = 64

try:
    from triton.language.extra import libdevice
except ImportError:
    libdevice = None


def tiles(size: int) -> int:
    """Never calls F.conv2d or x @ w."""
    return triton.cdiv(size, BLOCK)


@triton.jit
def kernel(x, w, y, BLOCK: tl.constexpr):
    tl.store(y, tl.dot(tl.load(x), tl.load(w)))  # torch.matmul would be cheating


class ModelNew(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 3).to(torch.float32)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        return kernel[(tiles(x.numel()),)](x, self.conv.weight, torch.empty_like(x), BLOCK)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matmul(x.contiguous())
'''

CLEAN = '"""A technique."""\nimport torch\nfrom torch import nn\nimport torch.nn.functional as F\n'
MODEL = "class ModelNew(nn.Module): pass\n"


def rules(source: str) -> list[str]:
    return [finding.rule for finding in lint(source)]


def in_forward(body: str, init: str = "pass") -> str:
    """Return a clean solution whose `forward` holds `body`."""
    return (
        CLEAN
        + "class ModelNew(nn.Module):\n"
        + textwrap.indent(f"def __init__(self):\n    {init}\ndef forward(self, x, w):\n    {body}\n", "    ")
    )


def test_an_honest_solution_has_no_findings():
    assert lint(HONEST) == ()


def test_the_suites_own_solutions_have_no_findings():
    for path in Path(__file__).parents[1].glob("solutions/*/*.py"):
        assert lint(path.read_text()) == (), path


@pytest.mark.parametrize(
    "source",
    [
        "def f(:\n",
        "class ModelNew: pass\nreturn 1",
        "not python at all",
        "x = '\0'",
        "x = '\ud800'",
        "x = " + "(" * 500 + ")" * 500,
        "x = " + "1 + " * 100_000 + "1",
        "x = " + "-" * 100_000 + "1",
    ],
    ids=["def", "return", "prose", "null", "surrogate", "nested", "long sum", "long unary"],
)
def test_what_does_not_parse_is_one_error(source):
    (finding,) = lint(source)
    assert (finding.rule, finding.severity) == ("syntax", "error")
    assert finding.message
    assert read_header(source) == Header()


def test_syntax_error_gives_its_line():
    assert lint("x = 1\n\ny = = 2\n")[0].line == 3


def test_a_doubtful_escape_is_no_syntax_error():
    assert rules(CLEAN + "PATTERN = '\\d'\n" + MODEL) == []


@pytest.mark.parametrize(
    "source", ["", "class Model: pass\n", "def f():\n    class ModelNew: pass\n", "ModelNew.x = 1\n"]
)
def test_no_model_is_an_error(source):
    found = [finding for finding in lint(CLEAN + source) if finding.rule == "no-model"]
    assert [finding.severity for finding in found] == ["error"]


@pytest.mark.parametrize(
    "source",
    ["def ModelNew(*a): pass\n", "ModelNew = nn.Identity\n", "from torch.nn import Identity as ModelNew\n"],
)
def test_a_model_that_is_no_class_statement_is_advice(source):
    assert [(f.rule, f.severity) for f in lint(CLEAN + source)] == [("model-not-class", "advice")]


@pytest.mark.parametrize(
    "source",
    [
        MODEL + "ModelNew.__doc__ = 'text'\n",
        "try:\n    " + MODEL + "except ImportError:\n    raise\n",
        "if torch:\n    " + MODEL,
    ],
)
def test_a_model_may_be_dressed_or_guarded(source):
    assert not {"no-model", "model-not-class"} & set(rules(CLEAN + source))


@pytest.mark.parametrize(
    "code",
    [
        "print('hi')",
        "for i in range(3): pass",
        "with open('f') as f: pass",
        "torch.manual_seed(0)",
        "if torch:\n    print()",
        "del torch",
    ],
)
def test_code_at_module_level_is_advice(code):
    (finding,) = lint(CLEAN + MODEL + code + "\n")
    assert (finding.rule, finding.severity) == ("module-code", "advice")
    assert finding.line >= 6


@pytest.mark.parametrize(
    "code",
    [
        "A = 1",
        "A: int = 1",
        "A = [1]\nA += [2]",
        "B = F.relu",
        "async def f(): print()",
        "if torch:\n    A = 1\nelse:\n    pass",
        "'text'",
    ],
)
def test_definitions_at_module_level_are_not_findings(code):
    assert rules(CLEAN + MODEL + code + "\n") == []


@pytest.mark.parametrize(
    "code",
    [
        "def get_inputs(): return []",
        "def get_init_inputs(): return []",
        "get_inputs = None",
        "if __name__ == '__main__':\n    print(1)",
    ],
)
def test_leftovers_of_a_harness_are_advice(code):
    assert [(f.rule, f.severity) for f in lint(CLEAN + MODEL + code + "\n")] == [("harness", "advice")]


def test_a_method_may_be_called_like_the_harness():
    assert rules(in_forward("return self.get_inputs()")) == []


@pytest.mark.parametrize(
    "body",
    [
        "return F.conv2d(x, w)",
        "return F.conv_transpose2d(x, w)",
        "return torch.nn.functional.conv_transpose3d(x, w)",
        "return torch.conv1d(x, w)",
        "return torch.convolution(x, w, None, 1, 0, 1, False, 0, 1)",
        "return torch.ops.aten.convolution.default(x, w)",
        "return torch.cudnn_convolution_transpose(x, w)",
        "return torch.matmul(x, w)",
        "return torch.mm(x, w)",
        "return torch.bmm(x, w)",
        "return torch.einsum('ij,jk', x, w)",
        "return torch.linalg.multi_dot([x, w])",
        "return F.linear(x, w)",
        "return x @ w",
        "x @= w",
        "return x.matmul(w)",
        "return x.view(1, 1).mm(w)",
        "return self.weight.matmul(x)",
        "f = F.conv2d; return f(x, w)",
        "from torch import matmul as m; return m(x, w)",
        "import torch as t; return t.matmul(x, w)",
        "return nn.Conv2d(1, 1, 1)(x)",
        "return nn.Sequential(nn.Conv2d(1, 1, 1))(x)",
        "import torch.nn.functional; return torch.nn.Conv2d(1, 1, 1)(x)",
        "return super().forward(x)",
    ],
)
def test_a_library_operator_is_advice(body):
    assert [(f.rule, f.severity) for f in lint(in_forward(body))] == [("library", "advice")]


@pytest.mark.parametrize(
    "init",
    [
        "self.conv = nn.ConvTranspose2d(1, 1, 1)",
        "self.conv: nn.Module = torch.nn.Linear(1, 1)",
        "self.conv = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())",
    ],
)
@pytest.mark.parametrize("call", ["self.conv(x)", "self.conv.forward(x)"])
def test_calling_a_held_layer_is_advice(init, call):
    assert rules(in_forward(f"return {call}", init)) == ["library"]


@pytest.mark.parametrize(
    "body",
    [
        "return self.conv.weight + self.conv.bias",
        "return self.matmul(x, w)",
        "return mm(x, w)",
        "return x * w + F.relu(x)",
        "return torch.empty_like(x).contiguous()",
        "return 'torch.matmul(x, w)'  # F.conv2d(x, w)",
        "return self.relu(x)",
    ],
)
def test_holding_parameters_and_own_kernels_are_not_findings(body):
    init = "self.conv, self.relu = nn.ConvTranspose2d(1, 1, 1).to(torch.float16), None"
    assert rules(in_forward(body, init)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import numpy",
        "import cupy as cp",
        "from scipy import fft",
        "from . import sibling",
        "from .torch import nn",
        "from runner import judge",
        "import torchvision",
    ],
)
def test_a_foreign_import_is_advice(code):
    assert [(f.rule, f.severity) for f in lint(CLEAN + MODEL + code + "\n")] == [("import", "advice")]
    assert rules(in_forward(code)) == ["import"]


@pytest.mark.parametrize(
    "code",
    [
        "import math, functools",
        "from torch.utils import cpp_extension",
        "import triton.language as tl",
        "import os.path",
    ],
)
def test_torch_triton_and_the_standard_library_are_not_foreign(code):
    assert rules(CLEAN + MODEL + code + "\n") == []


def test_a_missing_technique_is_advice():
    assert [(f.rule, f.severity) for f in lint("from torch import nn\n" + MODEL)] == [
        ("no-technique", "advice")
    ]


@pytest.mark.parametrize(
    ("code", "maths", "dtypes"),
    [
        ("", MATHS, DTYPES),
        ("MATH = ('tf32',)", ("tf32",), DTYPES),
        ("MATH = ['fp32', 'tf32', 'fp32']", ("fp32", "tf32"), DTYPES),
        ("DTYPES: tuple = ('fp16', 'bf16')", MATHS, ("fp16", "bf16")),
        ("MATH = ('tf32',)\nMATH = ('fp32',)", ("fp32",), DTYPES),
        ("def f():\n    MATH = 3", MATHS, DTYPES),
    ],
)
def test_declarations_are_read(code, maths, dtypes):
    source = CLEAN + MODEL + code + "\n"
    header = read_header(source)
    assert (header.maths, header.dtypes) == (maths, dtypes)
    assert lint(source) == ()


@pytest.mark.parametrize(
    "code",
    [
        "MATH = 'tf32'",
        "MATH = ('tf32')",
        "MATH = ()",
        "MATH = ('fp16',)",
        "MATH = (['tf32'],)",
        "MATH = {[]: 1}",
        "MATH = tuple(['tf32'])",
        "MATH = None",
        "MATH: tuple",
        "DTYPES = ('fp64',)",
        "DTYPES = ('fp32', torch.float16)",
        "def DTYPES(): pass",
        "MATH = DTYPES = 1",
    ],
)
def test_a_bad_declaration_is_an_error(code):
    found = lint(CLEAN + MODEL + code + "\n")
    assert {(f.rule, f.severity) for f in found} == {("declaration", "error")}
    assert read_header(CLEAN + MODEL + code + "\n") == Header(technique="A technique.")


def test_header_fields_are_read():
    assert read_header(HONEST) == Header(
        technique="Gather every output pixel's taps in one GEMM.",
        author="A. Contributor",
        notes="64x64x32 tiles",
        maths=("tf32",),
    )


def test_findings_come_by_line():
    found = lint("import numpy\nprint()\nMATH = 1\nx @ y\nclass ModelNew: pass\n")
    assert [f.line for f in found] == sorted(f.line for f in found)
    assert len({f.rule for f in found}) == 5


def test_only_what_cannot_run_or_be_planned_is_an_error():
    everything = [
        HONEST,
        "",
        "def f(:",
        "import numpy\nx @ y\nMATH = 1\nget_inputs = 1\nModelNew = 1\nprint()\n",
    ]
    errors = {f.rule for source in everything for f in lint(source) if f.severity == "error"}
    assert errors == {"syntax", "no-model", "declaration"}
    assert len(RULES) == 7


@given(st.text())
def test_any_text_gets_findings_and_no_exception(source):
    assert isinstance(lint(source), tuple)
    assert isinstance(read_header(source), Header)


@pytest.mark.parametrize(
    "source",
    [
        "x" + "()" * 2000,
        "x" + ".a" * 2000,
        "if a:\n    b = 1\n" + "elif a:\n    b = 1\n" * 800,
        "x = 1\n" * 20_000,
    ],
    ids=["calls", "attributes", "branches", "statements"],
)
def test_a_hostile_text_is_read_in_time(source):
    assert rules(source)


def test_linting_runs_nothing(tmp_path):
    witness = tmp_path / "ran"
    code = f"open({str(witness)!r}, 'w').close()\nimport torch\nclass ModelNew: pass\n"
    script = (
        "import sys\nfrom runner.lint import lint\nlint(sys.argv[1])\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, code], check=True)
    assert not witness.exists()
