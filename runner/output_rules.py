"""What an answer to a prompt has to keep to: one table for the prompt's words and for lint's findings.

These rules bind only where they are asked for; to others they are advice, for a file of `solutions/` may have
constants and helpers.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runner.kernels import MAX_GRID_RANK, Kernel, is_kernel, kernels
from runner.launches import Launch, launches
from runner.lint import ADVICE, ERROR, Finding, Rule, dotted_name, imported_names, lint
from runner.tuning import LAUNCH_OPTIONS, UNREAD

if TYPE_CHECKING:
    from runner.lint import Aliases

IMPORTS = {
    "torch": "import torch",
    "torch.nn": "import torch.nn as nn",
    "triton": "import triton",
    "triton.language": "import triton.language as tl",
}
KINDS = ("an import", "a kernel", "a wrapper", "ModelNew")
MODULE = ("torch.nn.Module", "torch.nn.modules.Module", "torch.nn.modules.module.Module")


@dataclass(frozen=True)
class OutputRule:
    """A rule as the prompt's `section` words it; `check` is None where lint has it for every solution."""

    name: str
    section: str
    text: str
    check: Rule | None


def _in_order(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    latest = 0
    for node in tree.body:
        kind = _kind(node, aliases)
        if kind is not None and kind < latest:
            yield Finding(node.lineno, "order", ERROR, f"{KINDS[kind]} after {KINDS[latest]}")
        latest = max(latest, kind or 0)


def _nothing_else(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    for index, node in enumerate(tree.body):
        is_docstring = index == 0 and ast.get_docstring(tree) is not None
        if not is_docstring and _kind(node, aliases) is None and not _is_test(node, aliases):
            message = "neither an import, a kernel, a wrapper nor ModelNew"
            yield Finding(node.lineno, "nothing-else", ERROR, message)


def _imports_all(tree: ast.Module) -> Iterator[Finding]:
    imported = set(imported_names(tree).values())
    # `import torch.nn` gives the name torch alone
    imported |= {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    for module, line in IMPORTS.items():
        if module not in imported:
            yield Finding(1, "imports", ERROR, f"{module} is not imported by name: write `{line}`")
    if "triton.language" in imported and imported_names(tree).get("tl") != "triton.language":
        yield Finding(1, "imports", ERROR, "triton.language is not imported as tl")


def _leaves_tests(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    for node in (one for one in tree.body if _is_test(one, aliases)):
        yield Finding(node.lineno, "no-tests", ERROR, "tests and inputs belong to the harness")


def _grids_are_static(tree: ast.Module) -> Iterator[Finding]:
    for node in _never_launched(tree):
        message = f"{node.name} is launched nowhere as {node.name}[grid](...), so no grid of it can be read"
        yield Finding(node.lineno, "grid-rank", ERROR, message)
    for launch in launches(tree):
        if launch.grid.rank is None:
            message = "no static rank: write the grid as a tuple, or as a lambda that returns one"
            yield Finding(launch.line, "grid-rank", ERROR, message)
        elif launch.grid.rank > MAX_GRID_RANK:
            message = f"{launch.grid.rank} dimensions, at most {MAX_GRID_RANK} exist"
            yield Finding(launch.line, "grid-rank", ERROR, message)


def _ids_match_grids(tree: ast.Module) -> Iterator[Finding]:
    for launch, kernel in _launched(tree):
        rank = launch.grid.rank
        if kernel.axes is None:
            message = f"{kernel.name} asks for a program_id whose axis is not 0, 1 or 2, as a literal"
            yield Finding(launch.line, "program-ids", ERROR, message)
        elif rank is not None and rank <= MAX_GRID_RANK and kernel.axes != set(range(rank)):
            axes = ", ".join(map(str, sorted(kernel.axes))) or "none"
            message = f"a grid of {rank} dimensions, but {kernel.name} uses program ids {axes}"
            yield Finding(launch.line, "program-ids", ERROR, message)


def _tunes_one_kind(tree: ast.Module) -> Iterator[Finding]:
    extents = _extents(tree)
    for kernel in kernels(tree).values():
        varied = kernel.tuning.varied if kernel.tuning else frozenset()
        blocks, options = _blocks(varied, extents[kernel.name]), sorted(varied & LAUNCH_OPTIONS)
        if kernel.tuning and blocks and options:
            both = ", ".join([*blocks, *options])
            yield Finding(kernel.tuning.line, "tune-one-kind", ERROR, f"{both} are tuned together")


def _tuned_grids_are_functions(tree: ast.Module) -> Iterator[Finding]:
    extents = _extents(tree)
    for launch, kernel in _launched(tree):
        tuned = _blocks(kernel.tuning.names, extents[kernel.name]) if kernel.tuning else []
        if tuned and not launch.grid.of_meta:
            message = f"{', '.join(tuned)} are autotuned: grid = lambda META: (...)"
            yield Finding(launch.line, "lambda-grid", ERROR, message)


def _blocks_once(tree: ast.Module) -> Iterator[Finding]:
    extents = _extents(tree)
    for launch, kernel in _launched(tree):
        places = {
            "the launch": launch.constants,
            "the kernel": kernel.constants,
            "its heuristics": kernel.heuristics,
            "its autotuner": kernel.tuning.names if kernel.tuning else frozenset(),
        }
        for name in _blocks(frozenset().union(*places.values()), extents[kernel.name]):
            where = [place for place, names in places.items() if name in names]
            if len(where) > 1:
                yield Finding(launch.line, "block-once", ERROR, f"{name} is set by {' and by '.join(where)}")


def _has_kernel(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    if not any(is_kernel(node, aliases) for node in tree.body):
        yield Finding(1, "has-kernel", ERROR, "no function under @triton.jit")


def _model_is_module(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    for model in _models(tree):
        if not any(dotted_name(base, aliases) in MODULE for base in model.bases):
            yield Finding(
                model.lineno, "is-module", ERROR, "ModelNew is not derived from torch.nn.Module itself"
            )


def _calls_kernels(tree: ast.Module) -> Iterator[Finding]:
    known = kernels(tree).keys()
    for model in _models(tree):
        if known and not known & _names_from_forward(model, tree):
            yield Finding(model.lineno, "calls-kernels", ERROR, "its forward leads to no kernel of the file")


OUTPUT_RULES = (
    OutputRule(
        "order",
        "output",
        "Keep exactly this order:\n"
        "   1. imports: torch, torch.nn, triton, triton.language as tl\n"
        "   2. kernel functions, each under @triton.jit\n"
        "   3. wrapper functions, which compute the grid and launch the kernels\n"
        "   4. class ModelNew(nn.Module), which calls your kernels",
        _in_order,
    ),
    OutputRule("imports", "output", "All four imports are there.", _imports_all),
    OutputRule(
        "nothing-else", "output", "Nothing else at module level, but for a docstring on top.", _nothing_else
    ),
    OutputRule(
        "no-tests",
        "output",
        "Leave out testing code, if __name__, get_inputs and get_init_inputs.",
        _leaves_tests,
    ),
    OutputRule(
        "no-model", "output", "ModelNew is there, with the constructor and forward of the current code.", None
    ),
    OutputRule("has-kernel", "output", "At least one kernel is there, under @triton.jit.", _has_kernel),
    OutputRule("is-module", "output", "ModelNew derives from nn.Module itself.", _model_is_module),
    OutputRule(
        "calls-kernels",
        "output",
        "ModelNew.forward launches the kernels, itself or through the wrappers.",
        _calls_kernels,
    ),
    OutputRule("library", "output", "Calls to a library's convolutions and matmuls are reported.", None),
    OutputRule(
        "grid-rank",
        "safety",
        "A grid has at most 3 dimensions and a static rank. Launch each kernel by its name.",
        _grids_are_static,
    ),
    OutputRule(
        "program-ids",
        "safety",
        "grid=(G0, G1, G2) matches tl.program_id(0/1/2): as many program ids as dimensions.",
        _ids_match_grids,
    ),
    OutputRule(
        "tune-one-kind",
        "autotune",
        "Autotune either BLOCK_* or (num_warps, num_stages), not both. Every extent of a tile is a BLOCK, "
        "whatever its name: BM, TILE_M.",
        _tunes_one_kind,
    ),
    OutputRule(
        "lambda-grid",
        "autotune",
        "Where BLOCK_* are autotuned, write grid=lambda META: (...).",
        _tuned_grids_are_functions,
    ),
    OutputRule(
        "block-once",
        "autotune",
        "Set each BLOCK_* in one place: never in both kernel and launch, nor by a tuner as well.",
        _blocks_once,
    ),
)
CHECKS = tuple(rule.check for rule in OUTPUT_RULES if rule.check)


def findings(source: str, *, bind: bool) -> tuple[Finding, ...]:
    """Return what lint and these rules find in a text, by line; rules that do not bind are advice."""
    ours = {rule.name for rule in OUTPUT_RULES if rule.check and not bind}
    found = lint(source, CHECKS)
    return tuple(replace(one, severity=ADVICE) if one.rule in ours else one for one in found)


def _kind(node: ast.stmt, aliases: Aliases) -> int | None:
    """Place a statement in the order of `KINDS`; None for what has no place in it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return 0
    if isinstance(node, ast.FunctionDef) and not _is_test(node, aliases):
        return 1 if is_kernel(node, aliases) else 2
    return 3 if isinstance(node, ast.ClassDef) and node.name == "ModelNew" else None


def _is_test(node: ast.stmt, aliases: Aliases) -> bool:
    if isinstance(node, ast.If):
        return any(isinstance(name, ast.Name) and name.id == "__name__" for name in ast.walk(node.test))
    if not isinstance(node, ast.FunctionDef) or is_kernel(node, aliases):
        return False
    return node.name in {"get_inputs", "get_init_inputs", "test"} or node.name.startswith("test_")


def _launched(tree: ast.Module) -> Iterator[tuple[Launch, Kernel]]:
    known = kernels(tree)
    return ((launch, known[launch.kernel]) for launch in launches(tree))


def _never_launched(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the kernels that are neither launched by their name nor called by another, or by `tl.reduce`."""
    aliases = imported_names(tree)
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and is_kernel(node, aliases)]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    within = [node for kernel in found for node in ast.walk(kernel) if isinstance(node, ast.Call)]
    handed = [one for call in within for one in (*call.args, *(keyword.value for keyword in call.keywords))]
    named = [*(call.func for call in calls), *handed]
    used = {one.id for one in named if isinstance(one, ast.Name)} | {one.kernel for one in launches(tree)}
    yield from (node for node in found if node.name not in used)


def _extents(tree: ast.Module) -> dict[str, set[str]]:
    """Return each kernel's parameters that are extents of a tile, there or in a grid."""
    found = {name: set(kernel.extents) for name, kernel in kernels(tree).items()}
    for launch in launches(tree):
        found[launch.kernel] |= launch.divisors
    return found


def _blocks(names: frozenset[str], extents: set[str]) -> list[str]:
    """Return the names that are extents of a tile, or say so; settings that cannot be read may be."""
    return sorted(name for name in names if name in extents or name.startswith(("BLOCK", UNREAD)))


def _models(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ModelNew"]


def _names_from_forward(model: ast.ClassDef, tree: ast.Module) -> set[str]:
    """Return the names that `forward` leads to, by methods, attributes and functions of the module."""
    functions = {node.name: [node] for node in tree.body if isinstance(node, ast.FunctionDef)}
    own: dict[str, list[ast.AST]] = {}
    for node in ast.walk(model):
        if isinstance(node, ast.FunctionDef):
            own.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                own.setdefault(getattr(target, "attr", getattr(target, "id", "")), []).append(node.value)
    names: set[str] = set()
    attributes = {"forward"}
    pending = own.get("forward", [])[:]
    while pending:
        for node in ast.walk(pending.pop()):
            if isinstance(node, ast.Name) and node.id not in names:
                names.add(node.id)
                pending += functions.get(node.id, [])
            elif isinstance(node, ast.Attribute) and node.attr not in attributes:
                attributes.add(node.attr)
                pending += own.get(node.attr, [])
    return names
