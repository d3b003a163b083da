"""Syntax tree -> Triton kernels, their autotuning and their launches, as far as a reader can tell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from runner.lint import Aliases, dotted_name, imported_names

#: What an autotuner sets beside a kernel's own constants.
LAUNCH_OPTIONS = frozenset({"num_warps", "num_stages"})

Functions = dict[str, ast.FunctionDef]


@dataclass(frozen=True)
class Tuning:
    """An `@triton.autotune`: the names its configurations set, and those that they set differently."""

    line: int
    names: frozenset[str]
    varied: frozenset[str]


@dataclass(frozen=True)
class Kernel:
    """A function under `@triton.jit`.

    `axes` are those of the program ids that it or what it calls asks for, None where one is no literal.
    `constants` are the names that it sets itself, by assignment or by default.
    """

    name: str
    axes: frozenset[int] | None
    constants: frozenset[str]
    tuning: Tuning | None


@dataclass(frozen=True)
class Grid:
    """A grid's rank, None where it is not static, and whether it is a function of the configuration."""

    rank: int | None
    of_meta: bool


@dataclass(frozen=True)
class Launch:
    """`kernel[grid](...)`: `constants` are the names that it passes by keyword or that its function sets."""

    line: int
    kernel: str
    grid: Grid
    constants: frozenset[str]


def is_kernel(node: ast.stmt, aliases: Aliases) -> bool:
    """Tell whether a statement defines a function under `@triton.jit`."""
    return isinstance(node, ast.FunctionDef) and any(
        dotted_name(_undecorated(decorator), aliases) == "triton.jit" for decorator in node.decorator_list
    )


def kernels(tree: ast.Module) -> dict[str, Kernel]:
    """Return a module's kernels by name, those that are only called by others included."""
    aliases = imported_names(tree)
    functions = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and is_kernel(node, aliases)
    }
    return {
        name: Kernel(name, _axes(name, functions, aliases), _constants(node), _tuning(node, tree, aliases))
        for name, node in functions.items()
    }


def launches(tree: ast.Module) -> list[Launch]:
    """Return the launches of a module's kernels, by line."""
    names = kernels(tree).keys()
    helpers = {f"{node.name}()": node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: dict[ast.Call, Launch] = {}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            target = call.func.value if isinstance(call.func, ast.Subscript) else None
            if isinstance(target, ast.Name) and target.id in names:
                found[call] = _launch(call, target.id, function, helpers)  # the innermost stays
    return sorted(found.values(), key=lambda launch: launch.line)


def _undecorated(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _axes(
    name: str, functions: Functions, aliases: Aliases, seen: frozenset[str] = frozenset()
) -> frozenset[int] | None:
    axes: frozenset[int] = frozenset()
    for call in (node for node in ast.walk(functions[name]) if isinstance(node, ast.Call)):
        called = dotted_name(call.func, aliases)
        if called == "triton.language.program_id":
            more = _axis(call)
        elif called in functions.keys() - seen - {name}:
            more = _axes(called, functions, aliases, seen | {name})
        else:
            continue
        if more is None:
            return None
        axes |= more
    return axes


def _axis(call: ast.Call) -> frozenset[int] | None:
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "axis")]
    if values and isinstance(values[0], ast.Constant) and isinstance(values[0].value, int):
        return frozenset({values[0].value})
    return None


def _constants(function: ast.FunctionDef) -> frozenset[str]:
    """Return the names that a function assigns, and its arguments with defaults."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaulted = positional[len(positional) - len(arguments.defaults) :]
    defaulted += [a for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return frozenset(stored | {argument.arg for argument in defaulted})


def _tuning(function: ast.FunctionDef, tree: ast.Module, aliases: Aliases) -> Tuning | None:
    for decorator in function.decorator_list:
        if dotted_name(_undecorated(decorator), aliases) == "triton.autotune":
            configs = [dict(_settings(node)) for node in _configs(decorator, tree, aliases)]
            names = frozenset(name for config in configs for name in config)
            varied = {
                n for n in names if None in (values := {c.get(n, "") for c in configs}) or len(values) > 1
            }
            return Tuning(decorator.lineno, names, frozenset(varied))
    return None


def _configs(decorator: ast.expr, tree: ast.Module, aliases: Aliases) -> Iterator[ast.Call]:
    """Yield the `triton.Config(...)` of a decorator, also of a list or function that it names."""
    named = {node.id for node in ast.walk(decorator) if isinstance(node, ast.Name)}
    places: list[ast.AST] = [decorator]
    for node in tree.body:
        names = {node.name} if isinstance(node, ast.FunctionDef) else _assigned(node)
        places += [node] if names & named else []
    for inner in (inner for place in places for inner in ast.walk(place)):
        if isinstance(inner, ast.Call) and dotted_name(inner.func, aliases) == "triton.Config":
            yield inner


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _settings(config: ast.Call) -> Iterator[tuple[str, str | None]]:
    """Yield what a configuration sets, each with its value's text, or None where it is no literal."""
    pairs: list[tuple[object, ast.expr]] = [
        *((k.arg, k.value) for k in config.keywords if k.arg in LAUNCH_OPTIONS),
        *zip(("num_warps", "num_stages"), config.args[1:3], strict=False),  # triton.Config({...}, 4, 2)
    ]
    for node in [*config.args[:1], *(k.value for k in config.keywords if k.arg == "kwargs")]:
        if isinstance(node, ast.Dict):
            keys = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
            pairs += zip(keys, node.values, strict=True)
        elif isinstance(node, ast.Call):  # dict(BLOCK_M=64)
            pairs += [(keyword.arg, keyword.value) for keyword in node.keywords]
    for name, value in pairs:
        if isinstance(name, str):
            yield name, repr(value.value) if isinstance(value, ast.Constant) else None


def _launch(call: ast.Call, kernel: str, function: ast.FunctionDef, helpers: Functions) -> Launch:
    grid = call.func.slice if isinstance(call.func, ast.Subscript) else call.func
    places = (call, *_values(grid, function))
    read = {node.id for place in places for node in ast.walk(place) if isinstance(node, ast.Name)}
    passed = {keyword.arg for keyword in call.keywords if keyword.arg}
    constants = frozenset(passed | (read & _constants(function)))
    return Launch(call.lineno, kernel, _grid(grid, function, helpers), constants)


def _values(node: ast.expr, function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield what a name stands for in a function: values assigned to it, or the inner function it is."""
    if isinstance(node, ast.Name):
        for inner in ast.walk(function):
            if isinstance(inner, ast.Assign) and node.id in _assigned(inner):
                yield inner.value
            elif isinstance(inner, ast.FunctionDef) and inner.name == node.id and inner is not function:
                yield inner


def _grid(grid: ast.expr, function: ast.FunctionDef, helpers: Functions) -> Grid:
    """Follow an expression, each name once, to the tuples that it may be, and say what they agree on."""
    found: list[Grid] = []
    seen: set[tuple[str, str]] = set()
    pending: list[tuple[ast.AST, ast.FunctionDef, bool]] = [(grid, function, False)]
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
        elif (inside.name, name) in seen:
            continue
        elif isinstance(node, ast.Call) and name in helpers:
            pending += [(value, helpers[name], of_meta) for value in _returned(helpers[name])]
        elif isinstance(node, ast.Name) and (values := list(_values(node, inside))):
            pending += [(value, inside, of_meta) for value in values]
        else:
            found.append(Grid(None, of_meta))
        seen |= {(inside.name, name)} if name else set()
    ranks = {each.rank for each in found}
    of_meta = bool(found) and all(each.of_meta for each in found)
    return Grid(ranks.pop() if len(ranks) == 1 else None, of_meta)


def _name(node: ast.AST) -> str:
    """Return a name, or `name()` where it is called; empty for other expressions."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return f"{node.func.id}()"
    return node.id if isinstance(node, ast.Name) else ""


def _returned(function: ast.FunctionDef) -> list[ast.expr]:
    return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
