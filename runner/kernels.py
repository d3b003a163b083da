"""Syntax tree -> Triton kernels: program ids, tile extents and what sets them, as a reader sees it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from runner.lint import Aliases, dotted_name, imported_names
from runner.tuning import Tuning, definitions, heuristics, tuning

MAX_GRID_RANK = 3
#: Operations of triton.language -> the positions and the names of their arguments that are extents of a tile.
SHAPES = {
    "triton.language.arange": (slice(2), {"start", "end"}),
    "triton.language.zeros": (slice(1), {"shape"}),
    "triton.language.full": (slice(1), {"shape"}),
    "triton.language.make_block_ptr": (slice(4, 5), {"block_shape"}),
    "triton.language.make_tensor_descriptor": (slice(3, 4), {"block_shape"}),
}

#: Calls of a function, each with the name of what it calls.
Calls = Sequence[tuple[str, ast.Call]]


@dataclass(frozen=True)
class Kernel:
    """A function under `@triton.jit`.

    `axes` are those of the program ids that it or what it calls asks for, None where one is not 0, 1 or 2.
    `extents` are its parameters that reach the shape of a tile, `constants` the names that it sets itself, by
    assignment or by default, and `heuristics` those that `@triton.heuristics` sets.
    """

    name: str
    parameters: tuple[str, ...]
    axes: frozenset[int] | None
    extents: frozenset[str]
    constants: frozenset[str]
    heuristics: frozenset[str]
    tuning: Tuning | None


def is_kernel(node: ast.stmt, aliases: Aliases) -> bool:
    """Tell whether a statement defines a function under `@triton.jit`."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    plain = (one.func if isinstance(one, ast.Call) else one for one in decorators)
    return any(dotted_name(one, aliases) == "triton.jit" for one in plain)


@lru_cache(maxsize=1)  # each rule asks for those of the same tree
def kernels(tree: ast.Module) -> Mapping[str, Kernel]:
    """Return a module's kernels by name, those that are only called by others included."""
    aliases, known = imported_names(tree), definitions(tree)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef) and is_kernel(n, aliases)}
    calls = {name: _calls(node, aliases) for name, node in functions.items()}
    extents = _extents(functions, calls)
    return {
        name: Kernel(
            name,
            _parameters(node),
            _axes(name, calls),
            extents[name],
            constants(node),
            heuristics(node, known, aliases),
            tuning(node, known, aliases),
        )
        for name, node in functions.items()
    }


def constants(function: ast.FunctionDef) -> frozenset[str]:
    """Return the names that a function assigns, and its arguments with defaults."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaulted = positional[len(positional) - len(arguments.defaults) :]
    defaulted += [a for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(stored | {argument.arg for argument in defaulted})


def bound(call: ast.Call, parameters: Sequence[str]) -> Iterator[tuple[str, ast.expr]]:
    """Yield each parameter that a call passes with its argument, as far as they are told apart."""
    for name, value in zip(parameters, call.args, strict=False):
        if isinstance(value, ast.Starred):
            break
        yield name, value
    yield from ((keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg)


def names_in(*nodes: ast.AST) -> set[str]:
    """Return the names that expressions read."""
    return {inner.id for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _parameters(function: ast.FunctionDef) -> tuple[str, ...]:
    """Return a function's parameters, those that may be passed by position first."""
    arguments = function.args
    return tuple(one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _calls(function: ast.FunctionDef, aliases: Aliases) -> Calls:
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return [(dotted_name(call.func, aliases), call) for call in calls]


def _axes(name: str, calls: Mapping[str, Calls]) -> frozenset[int] | None:
    axes: set[int] = set()
    seen, pending = {name}, [name]
    while pending:
        for called, call in calls[pending.pop()]:
            if called == "triton.language.program_id":
                axis = _axis(call)
                if axis is None:
                    return None
                axes.add(axis)
            elif called in calls and called not in seen:
                seen.add(called)
                pending.append(called)
    return frozenset(axes)


def _axis(call: ast.Call) -> int | None:
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "axis")]
    axis = values[0].value if values and isinstance(values[0], ast.Constant) else None
    return axis if isinstance(axis, int) and 0 <= axis < MAX_GRID_RANK else None


def _extents(
    functions: Mapping[str, ast.FunctionDef], calls: Mapping[str, Calls]
) -> dict[str, frozenset[str]]:
    """Return each function's parameters that reach the shape of a tile, there or in what it calls."""
    found: dict[str, frozenset[str]] = dict.fromkeys(functions, frozenset())
    sources = {name: _sources(node) for name, node in functions.items()}
    callers: dict[str, set[str]] = {name: set() for name in functions}
    for name in functions:
        for called, _ in calls[name]:
            callers.get(called, set()).add(name)
    pending = list(functions)
    while pending:  # until nothing is added
        name = pending.pop()
        reached: set[str] = set()
        for called, call in calls[name]:
            reached |= _shaping(called, call)
            wanted = found.get(called, frozenset())
            if wanted:
                passed = bound(call, _parameters(functions[called]))
                reached |= names_in(*(value for parameter, value in passed if parameter in wanted))
        extents = _origins(reached, sources[name]) & frozenset(_parameters(functions[name]))
        if extents - found[name]:
            found[name] |= extents
            pending += callers[name]
    return found


def _shaping(called: str, call: ast.Call) -> set[str]:
    """Return the names in the arguments of a call that are a tile's extents."""
    positions, keywords = SHAPES.get(called, (slice(0), set()))
    return names_in(*call.args[positions], *(one.value for one in call.keywords if one.arg in keywords))


def _sources(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Return for each name that a function assigns those that its values are made of."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in names_in(*targets):
                found.setdefault(name, set()).update(names_in(node.value))
    return found


def _origins(names: set[str], sources: Mapping[str, set[str]]) -> set[str]:
    """Return the names and all that they are made of."""
    found, pending = set(names), list(names)
    while pending:
        more = sources.get(pending.pop(), set()) - found
        found |= more
        pending += more
    return found
