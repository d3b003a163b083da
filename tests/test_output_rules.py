"""Each output rule with an answer that breaks it alone, and honest ones that it leaves alone."""

from __future__ import annotations

import pytest

from runner import lint
from runner.output_rules import CHECKS, OUTPUT_RULES

IMPORTS = "import torch\nimport torch.nn as nn\nimport triton\nimport triton.language as tl\n"
KERNEL = """
@triton.jit
def offset(BLOCK: tl.constexpr):
    return tl.program_id(axis=1) * BLOCK

@triton.jit
def kernel(x, n, BLOCK: tl.constexpr):
    o_n = tl.program_id(0) * BLOCK + offset(BLOCK)
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


def tuned(configs: str = CONFIGS, wrapper: str = LAMBDA, kernels: str = KERNEL) -> str:
    """Return an answer whose kernel is autotuned."""
    jit = "@triton.jit\ndef kernel"
    decorated = kernels.replace(jit, f"@triton.autotune(configs={configs}, key=['n'])\n{jit}")
    return IMPORTS + decorated + wrapper + MODEL


def broken(source: str) -> set[str]:
    return {finding.rule for finding in lint.lint(source, CHECKS) if finding.severity == lint.ERROR}


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
    "a test": ("no-tests", ANSWER + "def test_it():\n    assert True\n"),
    "no model": ("no-model", IMPORTS + KERNEL + WRAPPER),
    "four dimensions": ("grid-rank", ANSWER.replace("BLOCK), 1)", "BLOCK), 1, 1, 1)")),
    "a computed grid": ("grid-rank", ANSWER.replace("[grid]", "[tuple([1, 2])]")),
    "a grid of some rank": ("grid-rank", ANSWER.replace("[grid]", "[(1, 2) if x.ndim else (1, 2, 3)]")),
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
    "a tuned tuple": (
        "lambda-grid",
        tuned(wrapper=LAMBDA.replace(f"lambda META: {SIZED}", "(x.numel(), 1)")),
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


HONEST = {
    "plain": ANSWER,
    "a docstring": f'"""A technique."""\nfrom __future__ import annotations\n{ANSWER}',
    "from imports": ANSWER.replace("import torch.nn as nn", "from torch import nn"),
    "more imports": IMPORTS + "import math\n" + KERNEL + WRAPPER + MODEL,
    "a grid in place": ANSWER.replace("[grid]", "[(1, 2)]"),
    "a grid of a helper": ANSWER.replace("[grid]", "[grid_of(x.numel(), BLOCK)]"),
    "a choice of equal rank": ANSWER.replace("[grid]", "[(1, 2) if x.ndim else (2, 1)]"),
    "tuned blocks": tuned(),
    "tuned by a comprehension": tuned('[triton.Config({"BLOCK": b}) for b in (64, 128)]'),
    "tuned by a function": tuned(
        "configs()", 'def configs():\n    return [triton.Config({"BLOCK": 64}, num_warps=4)]\n' + LAMBDA
    ),
    "tuned warps": tuned(
        "[triton.Config({}, num_warps=w) for w in (4, 8)]", WRAPPER.replace(", num_warps=4", "")
    ),
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


def test_without_being_asked_for_the_rules_bind_nobody() -> None:
    asked = {rule.name for rule in OUTPUT_RULES if rule.check}
    for _, source in BREAKS.values():
        assert not asked & {finding.rule for finding in lint.lint(source)}
