"""Decorators of a Triton kernel -> what autotuners and heuristics set, as far as a reader can tell."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from runner.lint import Aliases, dotted_name

#: What an autotuner sets beside a kernel's own constants.
LAUNCH_OPTIONS = frozenset({"num_warps", "num_stages"})
_CONFIGS = frozenset({"triton.Config", "triton.runtime.Config", "triton.runtime.autotuner.Config"})
#: Begins the name of settings that cannot be read: `**name`.
UNREAD = "**"
#: The value of a setting that is no literal.
_UNKNOWN = object()

#: What a module defines, by name.
Definitions = Mapping[str, Sequence[ast.stmt]]
#: A setting's name, and its value or `_UNKNOWN`.
Setting = tuple[str, object]


@dataclass(frozen=True)
class Tuning:
    """What the `@triton.autotune` of a kernel set, all together, and what of it their configurations vary."""

    line: int
    names: frozenset[str]
    varied: frozenset[str]


def tuning(function: ast.FunctionDef, known: Definitions, aliases: Aliases) -> Tuning | None:
    """Return what a kernel's autotuners set, or None where it has none."""
    names: set[str] = set()
    varied: set[str] = set()
    decorators = list(_decorators(function, "triton.autotune", aliases))
    for decorator in decorators:
        places = [node for place in _places(decorator, known) for node in ast.walk(place)]
        calls = [node for node in places if isinstance(node, ast.Call)]
        made = [call for call in calls if dotted_name(call.func, aliases) in _CONFIGS]
        configs = [dict(_settings(call, places)) for call in made]
        names |= {name for config in configs for name in config}
        varied |= {name for name in names if _differs([config.get(name) for config in configs])}
    return Tuning(decorators[0].lineno, frozenset(names), frozenset(varied)) if decorators else None


def heuristics(function: ast.FunctionDef, known: Definitions, aliases: Aliases) -> frozenset[str]:
    """Return the names that `@triton.heuristics` sets."""
    names: set[str] = set()
    for decorator in _decorators(function, "triton.heuristics", aliases):
        places = [node for place in _places(decorator, known) for node in ast.walk(place)]
        values = [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
        names |= {name for value in values for name, _ in _pairs(value, places)}
    return frozenset(names)


def definitions(tree: ast.Module) -> Definitions:
    """Return a module's functions and assignments by the names that they define."""
    found: dict[str, list[ast.stmt]] = {}
    for node in tree.body:
        names = [node.name] if isinstance(node, ast.FunctionDef) else sorted(assigned(node))
        for name in names:
            found.setdefault(name, []).append(node)
    return found


def assigned(node: ast.AST) -> set[str]:
    """Return the names that an assignment assigns as a whole."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _decorators(function: ast.FunctionDef, name: str, aliases: Aliases) -> Iterator[ast.Call]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and dotted_name(decorator.func, aliases) == name:
            yield decorator


def _places(decorator: ast.Call, known: Definitions) -> Iterator[ast.AST]:
    """Yield a decorator and, one after another, what the module defines under the names that stand there."""
    seen: set[str] = set()
    pending: list[ast.AST] = [decorator]
    while pending:
        place = pending.pop()
        yield place
        named = {node.id for node in ast.walk(place) if isinstance(node, ast.Name)} - seen
        seen |= named
        pending += [node for name in sorted(named) for node in known.get(name, ())]


def _differs(values: list[object]) -> bool:
    return any(value is _UNKNOWN or value != values[0] for value in values)


def _settings(config: ast.Call, places: Sequence[ast.AST]) -> Iterator[Setting]:
    """Yield what a `triton.Config(...)` sets."""
    for keyword in config.keywords:
        if keyword.arg in LAUNCH_OPTIONS:
            yield keyword.arg, _value(keyword.value)
        elif keyword.arg in (None, "kwargs"):
            yield from _pairs(keyword.value, places)
    for name, value in zip(("kwargs", "num_warps", "num_stages"), config.args, strict=False):
        if isinstance(value, ast.Starred):  # what it holds, and whatever stands behind it, may be anything
            yield _unread(value.value), _UNKNOWN
            break
        if name == "kwargs":
            yield from _pairs(value, places)
        else:
            yield name, _value(value)  # triton.Config({...}, 4, 2)


def _pairs(mapping: ast.expr, places: Sequence[ast.AST]) -> Iterator[Setting]:
    """Yield what a mapping holds; of one that is no display, or spread into it, what those around hold."""
    items = _items(mapping)
    for key, value in [(None, mapping)] if items is None else items:
        if key is not None:
            yield key, _value(value)
        elif _items(value) is not None:
            yield from _pairs(value, places)
        else:
            yield from _spread(value, places)


def _spread(mapping: ast.expr, places: Sequence[ast.AST]) -> Iterator[Setting]:
    around = [items for node in places if (items := _items(node)) and all(key for key, _ in items)]
    found: dict[str, list[object]] = {}
    for key, value in (item for items in around for item in items):
        found.setdefault(key or "", []).append(_value(value))
    if not found:
        yield _unread(mapping), _UNKNOWN
    for key, values in found.items():
        yield key, _UNKNOWN if _differs(values) else values[0]


def _unread(node: ast.expr) -> str:
    return f"{UNREAD}{dotted_name(node, {}) or 'settings'}"


def _items(node: ast.AST) -> list[tuple[str | None, ast.expr]] | None:
    """Return the literal keys and the values of `{...}` or `dict(...)`; the key of what is spread is None."""
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        # a key that is computed might be any
        literal = ((key.value if isinstance(key, ast.Constant) else None, value) for key, value in pairs)
        return [(key, value) for key, value in literal if key is None or isinstance(key, str)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return None if node.args else [(keyword.arg, keyword.value) for keyword in node.keywords]
    return None


def _value(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else _UNKNOWN
