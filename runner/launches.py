"""Syntax tree -> launches of Triton kernels and their grids, as far as a reader can tell."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from runner.kernels import Kernel, bound, constants, kernels, names_in
from runner.tuning import assigned

#: A node that says where it stands.
Placed = ast.stmt | ast.expr | ast.ExceptHandler


@dataclass(frozen=True)
class Grid:
    """A grid's rank, None where it is not static, and whether it is a function of the configuration."""

    rank: int | None
    of_meta: bool


@dataclass(frozen=True)
class Launch:
    """`kernel[grid](...)`.

    `constants` are the parameters that it passes and the names it reads that its function sets; `divisors`
    the parameters that its grid divides by.
    """

    line: int
    kernel: str
    grid: Grid
    constants: frozenset[str]
    divisors: frozenset[str]


class _Scope:
    """A function, and what its names stand for: values assigned to them, or the inner functions they are."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.function = function

    @cached_property
    def constants(self) -> frozenset[str]:
        return constants(self.function)

    @cached_property
    def definitions(self) -> Mapping[str, list[ast.stmt]]:
        found: dict[str, list[ast.stmt]] = {}
        for node in ast.walk(self.function):
            if isinstance(node, ast.stmt) and node is not self.function:
                for name in _defined(node):
                    found.setdefault(name, []).append(node)
        return found

    def values(self, name: str, at: ast.expr | None) -> list[ast.AST]:
        """Return what a name may stand for, at a place or, without one, anywhere.

        What a launch cannot meet is left out: what is defined behind it, unless a loop comes back, and what a
        definition hides that always runs between.
        """
        found = self.definitions.get(name, [])
        if at is not None and found:
            around = list(_around(self.function, at))
            always = (_start(one) for _, before in around for one in before if name in _defined(one))
            hidden = max(always, default=(0, 0))
            loops = [
                one for one, _ in around if isinstance(one, ast.For | ast.While) and _start(one) > hidden
            ]
            found = [
                one
                for one in found
                if hidden <= _start(one) < _start(at) or any(_holds(loop, one) for loop in loops)
            ]
        return [value for one in found if (value := _value(one)) is not None]

    @cached_property
    def returned(self) -> list[ast.expr]:
        return _returned(self.function)


@lru_cache(maxsize=1)  # each rule asks for those of the same tree
def launches(tree: ast.Module) -> tuple[Launch, ...]:
    """Return the launches of a module's kernels, by line."""
    known = kernels(tree)
    helpers = {f"{node.name}()": _Scope(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    sites: dict[ast.Call, tuple[Kernel, _Scope]] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        scope = _Scope(function)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            target = call.func.value if isinstance(call.func, ast.Subscript) else None
            if isinstance(target, ast.Name) and target.id in known:
                sites[call] = known[target.id], scope  # the innermost function stays
    found = (_launch(call, *site, helpers) for call, site in sites.items())
    return tuple(sorted(found, key=lambda launch: launch.line))


def _launch(call: ast.Call, kernel: Kernel, scope: _Scope, helpers: Mapping[str, _Scope]) -> Launch:
    grid = call.func.slice if isinstance(call.func, ast.Subscript) else call.func
    places = [grid, *(scope.values(grid.id, call) if isinstance(grid, ast.Name) else [])]
    passed = dict(bound(call, kernel.parameters))
    spread = {name for one in call.keywords if one.arg is None for name in _keys(one.value, scope)}
    divisors = {name for place in places for name in _divisors(place)}
    divisors |= {name for name, value in passed.items() if _name(value) in divisors}
    return Launch(
        line=call.lineno,
        kernel=kernel.name,
        grid=_grid(grid, scope, helpers),
        constants=frozenset(passed.keys() | spread | (names_in(call, *places) & scope.constants)),
        divisors=frozenset(divisors.intersection(kernel.parameters)),
    )


def _keys(mapping: ast.expr, scope: _Scope) -> Iterator[str]:
    """Yield the literal keys of a dictionary, also of one that a function assigned to a name."""
    for node in [mapping, *(scope.values(mapping.id, mapping) if isinstance(mapping, ast.Name) else [])]:
        for key in node.keys if isinstance(node, ast.Dict) else []:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value


def _divisors(grid: ast.AST) -> Iterator[str]:
    """Yield the names, and the keys of a configuration, that stand right of `//` or second in a cdiv."""
    for node in ast.walk(grid):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and getattr(called, "attr", getattr(called, "id", "")) == "cdiv":
            values = [*node.args[1:], *(keyword.value for keyword in node.keywords)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            values = [node.right]
        else:
            continue
        for inner in (inner for value in values for inner in ast.walk(value)):
            if isinstance(inner, ast.Name):
                yield inner.id
            elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


def _grid(grid: ast.expr, scope: _Scope, helpers: Mapping[str, _Scope]) -> Grid:
    """Follow an expression, each name once, to the tuples that it may be, and say what they agree on."""
    found: list[Grid] = []
    seen: set[tuple[str, str]] = set()
    pending: list[tuple[ast.AST, _Scope, bool]] = [(grid, scope, False)]
    while pending:
        node, inside, of_meta = pending.pop()
        name = _name(node)
        if isinstance(node, ast.Tuple) and not any(isinstance(item, ast.Starred) for item in node.elts):
            found.append(Grid(len(node.elts), of_meta))
        elif isinstance(node, ast.Lambda):
            pending.append((node.body, inside, True))
        elif isinstance(node, ast.FunctionDef):
            pending += [(value, inside, True) for value in _returned(node)]
        elif isinstance(node, ast.IfExp):
            pending += [(value, inside, of_meta) for value in (node.body, node.orelse)]
        elif (inside.function.name, name) in seen:
            continue
        elif isinstance(node, ast.Call) and name in helpers:
            pending += [(value, helpers[name], of_meta) for value in helpers[name].returned]
        elif values := inside.values(name, grid if inside is scope else None):
            pending += [(value, inside, of_meta) for value in values]
        else:
            found.append(Grid(None, of_meta))
        seen |= {(inside.function.name, name)} if name else set()
    ranks = {each.rank for each in found}
    of_meta = bool(found) and all(each.of_meta for each in found)
    return Grid(ranks.pop() if len(ranks) == 1 else None, of_meta)


def _defined(node: ast.stmt) -> set[str]:
    """Return the names that a statement gives a value that can be followed."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    is_assignment = isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None
    return assigned(node) if is_assignment else set()


def _value(node: ast.stmt) -> ast.AST | None:
    return node.value if isinstance(node, ast.Assign | ast.AnnAssign) else node


def _around(node: ast.AST, at: ast.expr) -> Iterator[tuple[ast.AST, list[ast.stmt]]]:
    """Yield the statements that hold a place, from the outside, each with those of its block before it."""
    for block in (value for _, value in ast.iter_fields(node) if isinstance(value, list)):
        for index, one in enumerate(block):
            if isinstance(one, ast.stmt | ast.ExceptHandler) and _holds(one, at):
                yield one, block[:index]
                yield from _around(one, at)


def _holds(node: Placed, other: Placed) -> bool:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return _start(node) <= _start(other) < end


def _start(node: Placed) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _name(node: ast.AST) -> str:
    """Return a name, or `name()` where it is called; empty for other expressions."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return f"{node.func.id}()"
    return node.id if isinstance(node, ast.Name) else ""


def _returned(function: ast.FunctionDef) -> list[ast.expr]:
    return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
