"""Each output rule with an answer that breaks it alone, and honest ones that it leaves alone."""

from __future__ import annotations

import pytest

from runner import lint, output_rules
from runner.output_rules import CHECKS, OUTPUT_RULES

IMPORTS = "import torch\nimport torch.nn as nn\nimport triton\nimport triton.language as tl\n"
KERNEL = """
@triton.jit
def offset(BLOCK: tl.constexpr):
    return tl.program_id(axis=1) * BLOCK

@triton.jit
def kernel(x, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + offset(BLOCK) + tl.arange(0, BLOCK)
    tl.store(x + o_n, 0, mask=o_n < n)
"""
WRAPPER = """
def grid_of(n, block):
    return triton.cdiv(n, block), 1

def launch(x):
    BLOCK = 128 if x.numel() > 1000 else 64
    grid = (triton.cdiv(x.numel(), BLOCK), 1)
    kernel[grid](x, x.numel(), BLOCK=BLOCK, num_warps=4)
"""
MODEL = """
class ModelNew(nn.Module):
    def forward(self, x):
        launch(x)
        return x
"""
ANSWER = IMPORTS + KERNEL + WRAPPER + MODEL

CONFIGS = '[triton.Config({"BLOCK": 64}, num_warps=4), triton.Config({"BLOCK": 128}, num_warps=4)]'
SIZED = '(triton.cdiv(x.numel(), META["BLOCK"]), 1)'
LAMBDA = f"""
def launch(x):
    grid = lambda META: {SIZED}
    kernel[grid](x, x.numel())
"""
OTHER = """
@triton.jit
def other(x, BLOCK: tl.constexpr):
    tl.store(x + tl.program_id(0), 0)
"""


def tuned(*configs: str, wrapper: str = LAMBDA, kernels: str = KERNEL) -> str:
    """Return an answer whose kernel is autotuned, by a decorator for each list of configurations."""
    return decorated(
        *(f"@triton.autotune(configs={each}, key=['n'])" for each in configs or (CONFIGS,)),
        wrapper=wrapper,
        kernels=kernels,
    )


def decorated(*decorators: str, wrapper: str, kernels: str = KERNEL) -> str:
    jit = "@triton.jit\ndef kernel"
    return IMPORTS + kernels.replace(jit, "\n".join([*decorators, jit])) + wrapper + MODEL


def renamed(source: str, name: str) -> str:
    """Return an answer whose tile has another name."""
    return source.replace("BLOCK", name)


#: A kernel whose tile is a number of rows that it takes one by one, so that the grid alone shows it.
ROWS = """
@triton.jit
def kernel(x, n, ROWS: tl.constexpr):
    for i in tl.static_range(ROWS):
        tl.store(x + tl.program_id(0) * ROWS + i, 0)
"""
#: A kernel whose tile has its extent by way of another's argument and a local name.
NESTED = """
@triton.jit
def fill(x, o, SIZE: tl.constexpr):
    HALF: tl.constexpr = SIZE // 2
    tl.store(x + o + tl.arange(0, HALF), 0)

@triton.jit
def kernel(x, n, T: tl.constexpr):
    fill(x, tl.program_id(0) + tl.program_id(1), SIZE=T)
"""


def broken(source: str) -> set[str]:
    return {finding.rule for finding in lint.lint(source, CHECKS) if finding.severity == lint.ERROR}


#: A second launch, whose grid takes the name of the first one's.
AGAIN = "    grid = (x.numel(),)\n    other[grid](x, BLOCK)\n"
TWO = IMPORTS + KERNEL + OTHER + WRAPPER
LOOPED = "    for i in range(3):\n" + "".join(f"    {line}\n" for line in AGAIN.splitlines())

BREAKS = {
    "kernel after a wrapper": ("order", IMPORTS + WRAPPER + KERNEL + MODEL),
    "wrapper after the model": ("order", IMPORTS + KERNEL + MODEL + WRAPPER),
    "late import": ("order", ANSWER + "import math\n"),
    "no torch.nn": (
        "imports",
        ANSWER.replace("import torch.nn as nn\n", "").replace("nn.Module", "torch.nn.Module"),
    ),
    "another name": ("imports", ANSWER.replace("as tl", "as lang").replace("tl.", "lang.")),
    "a constant": ("nothing-else", ANSWER + "BLOCK_M = 64\n"),
    "a call": ("nothing-else", ANSWER + "print(1)\n"),
    "another class": ("nothing-else", ANSWER + "class Model(nn.Module): ...\n"),
    "a main block": ("no-tests", ANSWER + "if __name__ == '__main__':\n    launch(torch.ones(3))\n"),
    "inputs": ("no-tests", ANSWER + "def get_inputs():\n    return []\n"),
    "arguments": ("no-tests", ANSWER + "def get_init_inputs():\n    return []\n"),
    "a test alone": ("no-tests", ANSWER + "def test():\n    assert True\n"),
    "a test": ("no-tests", ANSWER + "def test_it():\n    assert True\n"),
    "no model": ("no-model", IMPORTS + KERNEL + WRAPPER),
    "no kernel": (
        "has-kernel",
        IMPORTS
        + """
class ModelNew(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.conv = nn.ConvTranspose2d(*sizes)

    def forward(self, x):
        return self.conv(x)
""",
    ),
    "a plain class": ("is-module", ANSWER.replace("ModelNew(nn.Module)", "ModelNew")),
    "another layer": ("is-module", ANSWER.replace("ModelNew(nn.Module)", "ModelNew(nn.Conv2d)")),
    "a kernel that nobody asks": ("calls-kernels", ANSWER.replace("        launch(x)\n", "")),
    "a kernel in the constructor alone": (
        "calls-kernels",
        ANSWER.replace("        launch(x)\n        return x\n", "        return self.y\n").replace(
            "    def forward", "    def __init__(self):\n        launch(torch.ones(3))\n\n    def forward"
        ),
    ),
    "a model without forward": ("calls-kernels", ANSWER.replace("def forward", "def other")),
    "four dimensions": ("grid-rank", ANSWER.replace("BLOCK), 1)", "BLOCK), 1, 1, 1)")),
    "a computed grid": ("grid-rank", ANSWER.replace("[grid]", "[tuple([1, 2])]")),
    "a grid of some rank": ("grid-rank", ANSWER.replace("[grid]", "[(1, 2) if x.ndim else (1, 2, 3)]")),
    "a grid of either rank": (
        "grid-rank",
        TWO + "    if x.ndim:\n        grid = (1,)\n    other[grid](x, BLOCK)\n" + MODEL,
    ),
    "a grid of the turn before": (
        "grid-rank",
        TWO
        + LOOPED.replace("        grid", "        if i:\n            grid")
        + "        grid = (1, 2)\n"
        + MODEL,
    ),
    "a grid that is added to": (
        "grid-rank",
        ANSWER.replace("    kernel[", "    grid += (1,)\n    kernel["),
    ),
    "a starred grid": ("grid-rank", ANSWER.replace("[grid]", "[(*grid, 1)]")),
    "a launch by another name": ("grid-rank", ANSWER.replace("    kernel[", "    run = kernel\n    run[")),
    "a launch without brackets": ("grid-rank", ANSWER.replace("kernel[grid](", "kernel.run(grid, ")),
    "a kernel that is left over": ("grid-rank", IMPORTS + KERNEL + OTHER + WRAPPER + MODEL),
    "more dimensions than ids": ("program-ids", ANSWER.replace("BLOCK), 1)", "BLOCK), 1, 1)")),
    "more ids than dimensions": ("program-ids", ANSWER.replace("BLOCK), 1)", "BLOCK),)")),
    "a gap in the ids": ("program-ids", ANSWER.replace("axis=1", "axis=2")),
    "an unknown id": ("program-ids", ANSWER.replace("axis=1", "axis=BLOCK")),
    "blocks and warps by position": (
        "tune-one-kind",
        tuned('[triton.Config({"BLOCK": 64}, 4, 2), triton.Config({"BLOCK": 128}, 8, 2)]'),
    ),
    "blocks and warps": ("tune-one-kind", tuned(CONFIGS.replace("num_warps=4", "num_warps=8", 1))),
    "blocks and stages": (
        "tune-one-kind",
        tuned("[triton.Config(dict(BLOCK=b), num_stages=s) for b in (32, 64) for s in (2, 3)]"),
    ),
    "a block by another name and warps": (
        "tune-one-kind",
        renamed(tuned(CONFIGS.replace("num_warps=4", "num_warps=8", 1)), "BM"),
    ),
    "a block by the grid and warps": (
        "tune-one-kind",
        tuned(
            '[triton.Config({"ROWS": r}, num_warps=w) for r in (1, 2) for w in (4, 8)]',
            wrapper=LAMBDA.replace("BLOCK", "ROWS").replace(", 1)", ",)"),
            kernels=ROWS,
        ),
    ),
    "a block of another kernel and warps": (
        "tune-one-kind",
        tuned(
            '[triton.Config({"T": t}, num_warps=w) for t in (32, 64) for w in (4, 8)]',
            wrapper=LAMBDA.replace("BLOCK", "T"),
            kernels=NESTED,
        ),
    ),
    "two tuners": (
        "tune-one-kind",
        tuned(CONFIGS, "[triton.Config({}, num_warps=w) for w in (4, 8)]"),
    ),
    "blocks that are spread and warps": (
        "tune-one-kind",
        tuned("[triton.Config({**d}, num_warps=w) for d in ({'BLOCK': 64}, {'BLOCK': 128}) for w in (4, 8)]"),
    ),
    "blocks in a name and warps": (
        "tune-one-kind",
        tuned("[triton.Config(d, num_warps=w) for d in ({'BLOCK': 64}, {'BLOCK': 128}) for w in (4, 8)]"),
    ),
    "whole configurations that are spread": (
        "tune-one-kind",
        tuned(
            "[triton.Config(**c) for c in ({'kwargs': {'BLOCK': 64}, 'num_warps': 4},"
            " dict(kwargs=dict(BLOCK=32), num_warps=8))]"
        ),
    ),
    "blocks of pairs and warps": (
        "tune-one-kind",
        tuned('[triton.Config(dict([("BLOCK", b)]), num_warps=w) for b in (32, 64) for w in (4, 8)]'),
    ),
    "blocks of a computed name and warps": (
        "tune-one-kind",
        tuned('[triton.Config({"BLOC" + k: b}, num_warps=w) for k in "K" for b in (32, 64) for w in (4, 8)]'),
    ),
    "unreadable blocks and warps": (
        "tune-one-kind",
        tuned(
            "configs()",
            wrapper="def configs():\n    sizes = triton.runtime.cache\n"
            "    return [triton.Config({**sizes}, num_warps=w) for w in (4, 8)]\n" + LAMBDA,
        ),
    ),
    "blocks and warps in one star": (
        "tune-one-kind",
        tuned(
            "[triton.Config(*each) for each in product((64, 128), (4, 8))]",
            "[triton.Config({}, w) for w in (4, 8)]",
        ),
    ),
    "blocks and warps by the class's whole name": (
        "tune-one-kind",
        tuned("[triton.runtime.Config({'BLOCK': b}, w) for b in (64, 128) for w in (4, 8)]"),
    ),
    "a tuned tuple": (
        "lambda-grid",
        tuned(wrapper=LAMBDA.replace(f"lambda META: {SIZED}", "(x.numel(), 1)")),
    ),
    "a tuned tuple by another name": (
        "lambda-grid",
        renamed(tuned(wrapper=LAMBDA.replace(f"lambda META: {SIZED}", "(x.numel(), 1)")), "TILE_M"),
    ),
    "a block by heuristics and by the launch": (
        "block-once",
        decorated('@triton.heuristics({"BLOCK": lambda args: 64})', wrapper=WRAPPER),
    ),
    "a block by heuristics and a tuner": (
        "block-once",
        decorated(
            '@triton.heuristics(values={"BLOCK": lambda args: 64})',
            f"@triton.autotune(configs={CONFIGS}, key=['n'])",
            wrapper=LAMBDA,
        ),
    ),
    "a tuned block by another name": (
        "block-once",
        renamed(tuned(wrapper=LAMBDA.replace("x.numel())\n", "x.numel(), BLOCK=64)\n")), "BM"),
    ),
    "a tuned block by position": (
        "block-once",
        renamed(tuned(wrapper=LAMBDA.replace("x.numel())\n", "x.numel(), 64)\n")), "BM"),
    ),
    "a tuned block in a dictionary": (
        "block-once",
        tuned(wrapper=LAMBDA.replace("x.numel())\n", "x.numel(), **{'BLOCK': 64})\n")),
    ),
    "a block in the kernel": ("block-once", ANSWER.replace("    o_n =", "    BLOCK = 64\n    o_n =")),
    "a block by default": (
        "block-once",
        ANSWER.replace("n, BLOCK: tl.constexpr", "n, BLOCK: tl.constexpr = 64"),
    ),
    "a tuned block passed": (
        "block-once",
        tuned(wrapper=LAMBDA.replace("x.numel())\n", "x.numel(), BLOCK=64)\n")),
    ),
    "a tuned block for the grid": (
        "block-once",
        tuned(
            wrapper=LAMBDA.replace("    grid", "    BLOCK = 64\n    grid").replace('META["BLOCK"]', "BLOCK")
        ),
    ),
}


@pytest.mark.parametrize(("rule", "source"), BREAKS.values(), ids=BREAKS)
def test_an_answer_that_breaks_one_rule_is_refused_with_its_name(rule: str, source: str) -> None:
    assert broken(source) == {rule}


def test_every_rule_that_refuses_is_broken_once() -> None:
    assert {rule for rule, _ in BREAKS.values()} == {rule.name for rule in OUTPUT_RULES} - {"library"}


#: A kernel that is handed to an operation of `tl`, and is launched by nobody.
COMBINE = """
@triton.jit
def add(a, b):
    return a + b
"""
HONEST = {
    "a function for tl.reduce": ANSWER.replace(KERNEL, COMBINE + KERNEL).replace(
        "tl.store(x + o_n, 0,", "tl.store(x + o_n, tl.reduce(o_n, 0, add),"
    ),
    "a function for tl.associative_scan": ANSWER.replace(KERNEL, COMBINE + KERNEL).replace(
        "tl.store(x + o_n, 0,", "tl.store(x + o_n, tl.associative_scan(o_n, 0, combine_fn=add),"
    ),
    "a wrapper whose name begins so": ANSWER.replace("launch(", "testify("),
    "a kernel whose name begins so": ANSWER.replace("kernel[", "test_kernel[").replace(
        "def kernel", "def test_kernel"
    ),
    "a name for two grids": TWO + AGAIN + MODEL,
    "a name for two grids in a loop": TWO
    + LOOPED
    + "        grid = (1, 2)\n        kernel[grid](x, 3, BLOCK)\n"
    + MODEL,
    "a name for two grid functions": TWO
    + "    def grid(META):\n        return (x.numel(),)\n    other[grid](x, BLOCK)\n"
    + MODEL,
    "two grids on one line": TWO + "    grid = (3,); other[grid](x, BLOCK); grid = (1, 2, 3)\n" + MODEL,
    "plain": ANSWER,
    "a docstring": f'"""A technique."""\nfrom __future__ import annotations\n{ANSWER}',
    "from imports": ANSWER.replace("import torch.nn as nn", "from torch import nn"),
    "a module by its whole name": ANSWER.replace("import torch.nn as nn", "import torch.nn").replace(
        "nn.Module", "torch.nn.Module"
    ),
    "a grid with its type": ANSWER.replace("grid = (", "grid: tuple[int, ...] = ("),
    "more imports": IMPORTS + "import math\n" + KERNEL + WRAPPER + MODEL,
    "a grid in place": ANSWER.replace("[grid]", "[(1, 2)]"),
    "a grid of a helper": ANSWER.replace("[grid]", "[grid_of(x.numel(), BLOCK)]"),
    "a choice of equal rank": ANSWER.replace("[grid]", "[(1, 2) if x.ndim else (2, 1)]"),
    "tuned blocks": tuned(),
    "tuned by a comprehension": tuned('[triton.Config({"BLOCK": b}) for b in (64, 128)]'),
    "tuned by a function": tuned(
        "configs()",
        wrapper='def configs():\n    return [triton.Config({"BLOCK": 64}, num_warps=4)]\n' + LAMBDA,
    ),
    "tuned warps": tuned(
        "[triton.Config({}, num_warps=w) for w in (4, 8)]", wrapper=WRAPPER.replace(", num_warps=4", "")
    ),
    "tuned groups and warps": tuned(
        '[triton.Config({"GROUP": g}, num_warps=w) for g in (1, 8) for w in (4, 8)]',
        wrapper=WRAPPER,
        kernels=KERNEL.replace("n, BLOCK", "n, GROUP, BLOCK"),
    ),
    "one block in all configurations": tuned(
        "[triton.Config({**d}, num_warps=w) for d in [dict(BLOCK=64)] for w in (4, 8)]"
    ),
    "blocks by heuristics": decorated('@triton.heuristics({"BLOCK": lambda args: 64})', wrapper=LAMBDA),
    "a block by another name": renamed(ANSWER, "BM"),
    "rows": IMPORTS
    + ROWS
    + "def launch(x):\n    kernel[(triton.cdiv(x.numel(), 4),)](x, x.numel(), ROWS=4)\n"
    + MODEL,
    "a launch in forward": IMPORTS + KERNEL + MODEL.replace("launch(x)", "kernel[(1, 1)](x, 3, BLOCK=64)"),
    "a launch by a method": ANSWER.replace("        launch(x)", "        self.run(x)").replace(
        "    def forward", "    def run(self, x):\n        launch(x)\n\n    def forward"
    ),
    "a launch by an attribute": ANSWER.replace(
        "launch(x)\n        return", "self.run(x)\n        return"
    ).replace("    def forward", "    def __init__(self):\n        self.run = launch\n\n    def forward"),
    "Module by its own name": ANSWER.replace(
        "import triton\n", "from torch.nn import Module\nimport triton\n"
    ).replace("(nn.Module)", "(Module)"),
    "a grid function": tuned(
        wrapper="def launch(x):\n    def grid(META):\n        return x.numel() // META['BLOCK'], 1\n"
        "    kernel[grid](x, x.numel())\n"
    ),
    "another launch's block": tuned(
        wrapper=LAMBDA + "    BLOCK = 64\n    other[(x.numel() // BLOCK,)](x, BLOCK)\n",
        kernels=KERNEL + OTHER,
    ),
}


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_an_honest_answer_is_left_alone(source: str) -> None:
    assert broken(source) == set()


def test_findings_point_at_their_line() -> None:
    (finding,) = (f for f in lint.lint(BREAKS["four dimensions"][1], CHECKS) if f.rule == "grid-rank")
    assert ANSWER.splitlines()[finding.line - 1].startswith("    kernel[grid]")


def test_names_that_lead_in_circles_come_to_an_end() -> None:
    circle = "".join(f"    g{n} = g{n + 1}\n    g{n} = g{(n * 7) % 40}\n" for n in range(40))
    assert broken(ANSWER.replace("    grid = (", f"{circle}    grid = g0\n    other = (")) == {"grid-rank"}


def test_library_calls_are_reported_and_refuse_nothing() -> None:
    source = ANSWER.replace("return x\n", "return x @ x\n")
    assert broken(source) == set()
    assert "library" in {finding.rule for finding in lint.lint(source, CHECKS)}


def test_without_being_asked_for_the_rules_bind_nobody_and_are_told() -> None:
    ours = {rule.name for rule in OUTPUT_RULES if rule.check}
    for rule, source in BREAKS.values():
        found = output_rules.findings(source, bind=False)
        assert rule in {one.rule for one in found}
        assert {one.severity for one in found if one.rule in ours} <= {lint.ADVICE}
        assert {(one.line, one.rule, one.message) for one in found} == {
            (one.line, one.rule, one.message) for one in output_rules.findings(source, bind=True)
        }


@pytest.mark.parametrize(
    "kernels",
    [
        "".join(
            f"@triton.jit\ndef k{n}(x, B):\n    k{(n + 1) % 400}(x, B)\n    k{(n * 7) % 400}(x, B)\n"
            for n in range(400)
        ),
        f"@triton.jit\ndef k0(x):\n    tl.program_id({'0x' + 'f' * 5000})\n",
        f"@triton.autotune([triton.Config({{'B': {'0x' + 'f' * 5000}}})], [])\n{OTHER.strip()}\n",
        "@triton.autotune([triton.Config({**d" + "()" * 2000 + "}, num_warps=w)], [])\n" + OTHER.strip(),
        OTHER + "def launch(x):\n" + "    other[(1,)](x, B=1)\n" * 4000,
    ],
    ids=["circles", "an axis", "a value", "calls", "launches"],
)
def test_a_hostile_text_is_read_in_time(kernels: str) -> None:
    assert output_rules.findings(IMPORTS + kernels + "\n" + MODEL, bind=False)
