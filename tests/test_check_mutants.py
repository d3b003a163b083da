"""The comparator, slightly wrong in every way that a syntax tree offers: the tests of its budgets notice."""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_check_budgets as core

from runner.judge import check

SOURCE = Path(check.__file__).read_text()
TESTS = [test for name, test in vars(core).items() if name.startswith("test_")]
#: Changes of a line that no test could notice, with the reason.
EQUIVALENT = {
    "_CHUNK_ELEMENTS = 2**24  # 2 -> 3": "how much is compared at once changes no verdict",
    "_CHUNK_ELEMENTS = 2**24  # 24 -> 25": "how much is compared at once changes no verdict",
    "fewest = min(max(1, t[0].numel() if t.dim() else 1) for t in truths)  # 1 -> 2": (
        "from four elements down there are 16 draws, the most"
    ),
    "channels = min(max(1, t.shape[1] if t.dim() > 1 else 1) for t in truths)  # 1 -> 2": (
        "a sample without channels is one element, and from four down there are 16 draws, the most"
    ),
    "return torch.isin(truth, torch.cat([truth.new_zeros(1), *(v.to(truth.dtype) for v in vectors)]))"
    "  # 1 -> 2": "a second zero is no other value",
    "off = _finite(self._error(self._out[:, part], part)).abs() * self._within(population, part)  # "
    "_finite(self._error(self._out[:, part], part)).abs() * self._within(population, part) -> "
    "_finite(self._error(self._out[:, part], part)).abs() / self._within(population, part)": (
        "no quotient by zero is the peak"
    ),
    "bound = _SMALL * norm / count.clamp(min=1).sqrt()  # 1 -> 2": "of one output none is small",
    "return self._mask[:, part] & (size < bound[:, None]) & (size > 0)"
    "  # size < bound[:, None] -> size <= bound[:, None]": "which of two a bound itself is, is a convention",
    "step = _CHUNK_ELEMENTS // slices  # of which there are as many only if they are as small"
    "  # _CHUNK_ELEMENTS // slices -> _CHUNK_ELEMENTS * slices": "how much is looked at changes no verdict",
}

Operator = type[ast.cmpop | ast.operator | ast.boolop]
#: What is written for what.
OPERATORS: dict[Operator, tuple[Operator, ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
NAMES = {"max": "min", "maximum": "minimum", "amax": "amin", "argmax": "argmin", "any": "all"}
NAMES |= {"isposinf": "isneginf"}
NAMES |= {other: name for name, other in NAMES.items()}


def changed(node: ast.AST) -> Iterator[ast.AST | None]:
    """Yield what could stand in a node's place; None leaves a statement out."""
    match node:
        case ast.Compare(left, [operator], right):
            yield from (ast.Compare(left, [other()], right) for other in OPERATORS[type(operator)])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) | ast.BoolOp(op=operator):
            yield from (like(node, op=other()) for other in OPERATORS.get(type(operator), ()))
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield ast.Constant(1.25 * value or 1.0)
        case ast.Name(id=name) if name in NAMES:
            yield like(node, id=NAMES[name])
        case ast.Attribute(attr=name) if name in NAMES:
            yield like(node, attr=NAMES[name])
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.If(test=test) | ast.IfExp(test=test):
            yield like(node, test=ast.UnaryOp(ast.Not(), test))
    yield from lessened(node)


def lessened(node: ast.AST) -> Iterator[ast.AST | None]:
    """Yield one part of two, the sum of what was compared, or nothing."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            yield from (left, right)
        case ast.Call(ast.Name("max" | "min") | ast.Attribute(attr="maximum"), [left, right]):
            yield from (left, right, ast.BinOp(left, ast.Add(), right))
        case ast.AugAssign() | ast.Expr(ast.Call()):
            yield None


def like(node: ast.AST, **fields: object) -> ast.AST:
    """Copy a node, other in some fields."""
    mutant = copy.copy(node)
    vars(mutant).update(fields)
    return mutant


def places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield each node with where it hangs; annotations compute nothing, and `strict` asserts what holds."""
    for name, value in ast.iter_fields(parent):
        if name in {"annotation", "returns"} or (isinstance(parent, ast.keyword) and parent.arg == "strict"):
            continue
        for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST):
                yield parent, name, index, node
                yield from places(node)


def mutants() -> Iterator[tuple[str, ast.Module]]:
    """Yield the comparator with one change at a time, and what was changed in which line."""
    tree = ast.parse(SOURCE)
    lines = SOURCE.splitlines()
    for parent, name, index, node in list(places(tree)):
        for new in changed(node):
            put(parent, name, index, new or ast.Pass())
            text = ast.unparse(new) if new else "nothing"
            yield f"{lines[node.lineno - 1].strip()}  # {ast.unparse(node)} -> {text}", tree
            put(parent, name, index, node)


def put(parent: ast.AST, name: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, name, node)
    else:
        getattr(parent, name)[index] = node


def comparator(tree: ast.Module) -> types.ModuleType:
    """Run a module of the comparator's name, which is in nobody's way."""
    module = types.ModuleType(check.__name__)
    exec(compile(ast.fix_missing_locations(tree), "mutant", "exec"), vars(module))  # noqa: S102
    return module


def survives(tree: ast.Module, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether all tests pass with a comparator in the right one's place; one that fails will be the first."""
    monkeypatch.setattr(core, "check", comparator(tree))
    for test in TESTS:
        try:
            with monkeypatch.context() as patch:
                test(patch) if test.__code__.co_argcount else test()
        except Exception:  # noqa: BLE001 - a mutant may fail as it likes
            TESTS.insert(0, TESTS.pop(TESTS.index(test)))  # the next mutant is of the same line, or near
            return False
    return True


def test_a_comparator_that_is_right_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert survives(ast.parse(SOURCE), monkeypatch)


def test_every_other_comparator_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [name for name, tree in mutants() if survives(tree, monkeypatch)]
    assert sorted(set(everything)) == sorted(EQUIVALENT)
