"""Source text -> what a reader should know before it runs: findings and the declared header, by syntax tree.

The solution is never imported. An error stops it: it could not run, or declares an arithmetic that does not
exist. Advice stops nothing; about libraries it is a tripwire, easily evaded, and which kernels ran decides.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.schema import DTYPES, MATHS, Cell

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR = "error"
ADVICE = "advice"

#: Methods of a tensor that call a GEMM of a library, and operators of torch that do (conv* by their name).
GEMM_METHODS = frozenset({"addbmm", "addmm", "addmv", "baddbmm", "bmm", "inner", "matmul", "mm", "mv"})
GEMM_OPERATORS = GEMM_METHODS | {"bilinear", "chain_matmul", "einsum", "linear", "multi_dot", "tensordot"}
#: Where operators of torch are, the innermost first.
OPERATORS_OF = ("torch.nn.functional.", "torch.linalg.", "torch.ops.aten.", "torch.")
#: Layers that call one, Lazy ones aside.
LAYERS = frozenset(
    {"Linear", "Bilinear", *(f"Conv{kind}{axes}d" for kind in ("", "Transpose") for axes in "123")}
)

#: What may stand at module level; `if` and `try` are looked into.
DEFINITIONS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass, ast.If, ast.Try),
)

#: Imported name -> what it stands for, `F` -> `torch.nn.functional`.
Aliases = dict[str, str]


@dataclass(frozen=True, order=True)
class Finding:
    """One remark on one line. `severity` is "error" or "advice"; only an error stops a solution."""

    line: int
    rule: str
    severity: str
    message: str


@dataclass(frozen=True)
class Header:
    """What a solution says about itself.

    `technique` is its docstring's first line, `author` and `notes` are lines `author: ...` and `notes: ...`
    of the docstring, `maths` and `dtypes` the assignments MATH and DTYPES: everything when not declared.
    """

    technique: str = ""
    author: str = ""
    notes: str = ""
    maths: tuple[str, ...] = MATHS
    dtypes: tuple[str, ...] = DTYPES

    def covers(self, cell: Cell) -> bool:
        """Tell whether the solution declares a cell's arithmetic."""
        return cell.dtype in self.dtypes and (cell.dtype != "fp32" or cell.math in self.maths)


#: A rule reads a tree and yields what it finds.
Rule = Callable[[ast.Module], Iterator[Finding]]


def lint(source: str, extra: Iterable[Rule] = ()) -> tuple[Finding, ...]:
    """Return the findings of these rules, and of `extra` ones, in a solution's text, by line."""
    tree = _parse(source)
    if isinstance(tree, Finding):
        return (tree,)
    return tuple(sorted(finding for rule in (*RULES, *extra) for finding in rule(tree)))


def read_header(source: str) -> Header:
    """Return a solution's header; what is missing or malformed has its default, `lint` says why."""
    tree = _parse(source)
    if isinstance(tree, Finding):
        return Header()
    text = ast.get_docstring(tree) or ""
    lines = (line.partition(":") for line in text.split("\n"))
    fields = {name.lower(): value.strip() for name, _, value in lines if value.strip()}
    declared = {name: values for name, _, values in _declarations(tree) if isinstance(values, tuple)}
    return Header(
        technique=text.partition("\n")[0].strip(),
        author=fields.get("author", ""),
        notes=fields.get("notes", ""),
        maths=declared.get("MATH", MATHS),
        dtypes=declared.get("DTYPES", DTYPES),
    )


def _parse(source: str) -> ast.Module | Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape in somebody's string is not ours to report
            tree = ast.parse(source)
            compile(tree, "solution", "exec", dont_inherit=True)  # a `return` outside a function, say
            return tree
    except SyntaxError as error:
        return Finding(error.lineno or 1, "syntax", ERROR, error.msg)
    except (ValueError, RecursionError, MemoryError) as error:
        # a null byte, a lone surrogate, or nesting deeper than the parser goes
        return Finding(1, "syntax", ERROR, f"not parseable: {str(error) or type(error).__name__}")


def _has_model(tree: ast.Module) -> Iterator[Finding]:
    bound = [node for node in _statements(tree.body) if "ModelNew" in _bound_names(node)]
    if not bound:
        yield Finding(1, "no-model", ERROR, "defines no ModelNew")
    elif not isinstance(bound[-1], ast.ClassDef):
        yield Finding(bound[-1].lineno, "model-not-class", ADVICE, "ModelNew is not a class statement")


def _has_technique(tree: ast.Module) -> Iterator[Finding]:
    if not ast.get_docstring(tree):
        yield Finding(1, "no-technique", ADVICE, "no docstring whose first line names the technique")


def _declares_well(tree: ast.Module) -> Iterator[Finding]:
    for name, line, values in _declarations(tree):
        if isinstance(values, str):
            yield Finding(line, "declaration", ERROR, f"{name} {values}")


def _only_defines(tree: ast.Module) -> Iterator[Finding]:
    for node in _statements(tree.body):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (is_text or isinstance(node, DEFINITIONS)):
            yield Finding(node.lineno, "module-code", ADVICE, "runs when the file is imported")


def _leaves_harness(tree: ast.Module) -> Iterator[Finding]:
    for node in tree.body:
        for name in {"get_inputs", "get_init_inputs"} & _bound_names(node):
            yield Finding(node.lineno, "harness", ADVICE, f"{name} belongs to the problem; it is not used")
        if isinstance(node, ast.If) and "__name__" in _names(node.test):
            yield Finding(node.lineno, "harness", ADVICE, "a __main__ block never runs here")


def _imports_known(tree: ast.Module) -> Iterator[Finding]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for module in modules:
            if module.partition(".")[0] not in {"torch", "triton", *sys.stdlib_module_names}:
                yield Finding(
                    node.lineno, "import", ADVICE, f"{module} is neither torch, triton nor standard"
                )


def _calls_no_library(tree: ast.Module) -> Iterator[Finding]:
    aliases = imported_names(tree)
    layers = _layers(tree, aliases)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            used = _called_layer(node, aliases, layers) or _called_method(node, aliases)
        elif isinstance(node, ast.Attribute | ast.Name):
            used = _library_operator(dotted_name(node, aliases))
        elif isinstance(node, ast.BinOp | ast.AugAssign):
            used = "the operator @" if isinstance(node.op, ast.MatMult) else ""
        else:
            continue
        if used:
            yield Finding(node.lineno, "library", ADVICE, f"{used} runs a library's kernel")


def _library_operator(dotted: str) -> str:
    place = next((place for place in OPERATORS_OF if dotted.startswith(place)), "")
    name = dotted.removeprefix(place).removeprefix("_")
    is_conv = "." not in name and name.removeprefix("cudnn_").startswith("conv")
    return dotted if place and (is_conv or name in GEMM_OPERATORS) else ""


def _called_layer(node: ast.Call, aliases: Aliases, layers: set[str]) -> str:
    called = node.func
    if isinstance(called, ast.Attribute) and called.attr == "forward":
        called = called.value
        if isinstance(called, ast.Call) and dotted_name(called.func, aliases) == "super":
            return "the inherited forward"
    if isinstance(called, ast.Call) and any(_is_layer(made, aliases) for made in (called, *called.args)):
        return "a layer called where it is made"
    dotted = dotted_name(called, aliases)
    return f"the layer {dotted}" if dotted in layers else ""


def _called_method(node: ast.Call, aliases: Aliases) -> str:
    called = node.func
    if not (isinstance(called, ast.Attribute) and called.attr in GEMM_METHODS):
        return ""
    receiver = dotted_name(called.value, aliases)
    # a method of self is the solution's own; an operator of a module is judged by its full name
    imported = {name.partition(".")[0] for name in aliases.values()}
    is_tensor = receiver != "self" and receiver.partition(".")[0] not in imported
    return f"the method {called.attr}" if is_tensor else ""


RULES: tuple[Rule, ...] = (
    _has_model,
    _has_technique,
    _declares_well,
    _only_defines,
    _leaves_harness,
    _imports_known,
    _calls_no_library,
)


def _declarations(tree: ast.Module) -> Iterator[tuple[str, int, tuple[str, ...] | str]]:
    """Yield each declaration of MATH or DTYPES with its line, and its values or else what is wrong."""
    known = {"MATH": MATHS, "DTYPES": DTYPES}
    for node in _statements(tree.body):
        for name in known.keys() & _bound_names(node):
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            try:
                values = ast.literal_eval(value) if value else None
            except (ValueError, TypeError):
                values = None
            if isinstance(values, tuple | list) and values and all(v in known[name] for v in values):
                yield name, node.lineno, tuple(dict.fromkeys(values))
            else:
                yield name, node.lineno, f"must be a literal tuple out of {known[name]}"


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield a module's statements, also those inside `if` and `try`; not a __main__ block's."""
    pending = body[::-1]
    while pending:  # no recursion: each `elif` is one level deeper
        node = pending.pop()
        yield node
        inner: list[ast.stmt] = []
        if isinstance(node, ast.If) and "__name__" not in _names(node.test):
            inner = node.body + node.orelse
        elif isinstance(node, ast.Try):
            handled = [statement for handler in node.handlers for statement in handler.body]
            inner = node.body + handled + node.orelse + node.finalbody
        pending += inner[::-1]


def _bound_names(node: ast.stmt) -> set[str]:
    """Return the names that a definition, an import or an assignment binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [child for target in targets if target for child in ast.walk(target)]
    return {name.id for name in names if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def _names(node: ast.expr) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def imported_names(tree: ast.Module) -> Aliases:
    """Return what each imported name stands for."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                aliases[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return aliases


def dotted_name(node: ast.expr, aliases: Aliases) -> str:
    """Return `a.b.c` with its imported root written out; empty for anything but a chain of names."""
    chain: list[str] = []
    while isinstance(node, ast.Attribute):
        chain.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([aliases.get(node.id, node.id), *reversed(chain)])


def _layers(tree: ast.Module, aliases: Aliases) -> set[str]:
    """Return the names that hold a convolution or linear layer, `self.conv` say."""
    held: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _constructs_layer(node.value, aliases):
            held.update(dotted_name(target, aliases) for target in node.targets)
        elif isinstance(node, ast.AnnAssign) and node.value and _constructs_layer(node.value, aliases):
            held.add(dotted_name(node.target, aliases))
    return held - {""}


def _constructs_layer(node: ast.expr, aliases: Aliases) -> bool:
    return any(_is_layer(child, aliases) for child in ast.walk(node))


def _is_layer(node: ast.AST, aliases: Aliases) -> bool:
    if not isinstance(node, ast.Call):
        return False
    place, _, name = dotted_name(node.func, aliases).rpartition(".")
    # torch.nn.Conv2d and torch.nn.modules.conv.Conv2d
    known = place == "torch.nn" or (place.startswith("torch.nn.modules.") and place.count(".") == 3)
    return known and name.removeprefix("Lazy") in LAYERS
