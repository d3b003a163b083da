"""Every flag that a record can have has a meaning, and no other has one."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner import analyse, arithmetic, flags
from runner.schema import NOT_RANKED

ROOT = Path(__file__).parents[1]
#: What makes flags; `arithmetic` and `analyse` have names for some.
MAKERS = ("judge/referee.py", "judge/timing.py", "weigh.py", "analyse.py", "compare.py", "record.py")
#: These stand behind a colon, `syncs` in front of one too.
SECOND = {"arithmetic_mismatch", "batch_gain"}
NAMED = {
    "NOT_RANKED": NOT_RANKED,
    "WIDE": analyse.WIDE,
    "IN_PILOT": analyse.IN_PILOT,
    "CLAIM_MISMATCH": analyse.CLAIM_MISMATCH,
}


def _text(node: ast.expr) -> list[str]:
    """Return what a flag may begin with, by the expression that makes it."""
    if isinstance(node, ast.Constant):
        return [str(node.value)] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return [*_text(node.body), *_text(node.orelse)]
    if isinstance(node, ast.JoinedStr):
        parts = [
            str(one.value) if isinstance(one, ast.Constant) else NAMED.get(ast.unparse(one.value), "?")
            for one in node.values
            if isinstance(one, (ast.Constant, ast.FormattedValue))
        ]
        return ["".join(parts)]
    return [NAMED[ast.unparse(node)]] if ast.unparse(node) in NAMED else []


def made() -> Iterator[str]:
    """Find flags in the sources: what is appended, remarked, or a condition's name in `found`."""
    for file in MAKERS:
        for node in ast.walk(ast.parse((ROOT / "runner" / file).read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="append", value=held), args=[one]):
                    yield from _text(one) if ast.unparse(held).endswith("flags") else []
                case ast.Call(func=ast.Attribute(attr="_remark"), args=[one]):
                    yield from _text(one)
                case ast.Call(func=ast.Name(id="_flagged"), args=[_, one]):
                    yield from _text(one)
                case ast.Assign(targets=[ast.Name(id="found")], value=ast.Dict(keys=keys)):
                    yield from (text for key in keys if key for text in _text(key))
                case ast.Assign(targets=[ast.Name(id="flag")], value=value):
                    yield from _text(value)
                case (
                    ast.Assign(targets=[ast.Name(id="flags" | "disturbed")], value=value)
                    | ast.FunctionDef(name="flags_of_comparison", body=[*_, ast.Return(value=value)])
                ) if value:
                    lists = (one for one in ast.walk(value) if isinstance(one, ast.List))
                    yield from (text for one in lists for element in one.elts for text in _text(element))
                    comprehended = (one for one in ast.walk(value) if isinstance(one, ast.ListComp))
                    yield from (text for one in comprehended for text in _text(one.elt))
    yield f"{NOT_RANKED}: {arithmetic.MISMATCH}"


def test_every_flag_that_is_made_has_a_meaning() -> None:
    parts = {flags.name_of(part) for flag in made() for part in flag.split(": ")}
    assert flags.FLAGS.keys() <= parts
    assert {flags.name_of(flag) for flag in made()} == flags.FLAGS.keys() & parts - SECOND


def test_every_flag_on_record_has_a_meaning() -> None:
    recorded: set[str] = set()
    for file in (ROOT / "results").glob("*/*/*.jsonl"):
        recorded |= {flag for line in file.read_text().splitlines() for flag in json.loads(line)["flags"]}
    assert len(recorded) > 5
    assert {flags.name_of(flag) for flag in recorded} <= flags.FLAGS.keys()


@pytest.mark.parametrize(
    ("told", "named"),
    [
        (["wide", "launch_bound"], ["launch_bound", "wide"]),
        (["not_ranked: batch_gain"], ["not_ranked", "batch_gain"]),
        (["syncs: eager", "no_baseline: cudnn: out of memory"], ["syncs", "no_baseline"]),
        (["emulated_sms=128"], ["emulated_sms"]),
        (["not_ranked: the SM count is not proved"], ["not_ranked"]),
        ([], []),
    ],
)
def test_what_is_told_is_explained_once(told: list[str], named: list[str]) -> None:
    assert [line.partition(":")[0] for line in flags.notes([*told, *told])] == named
