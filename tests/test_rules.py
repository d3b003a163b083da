"""The rules of the repository: which module may import which, what the contracts demand, what stays light."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from runner import arguments, lint

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "runner").rglob("*.py"))
}
PROBLEMS = sorted((ROOT / "problems").glob("*.py"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*/*.py"))
BASELINES = sorted((ROOT / "runner" / "baselines").glob("[a-z]*.py"))


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(file: Path) -> set[str]:
    """Return the names that a file imports anywhere, `from a import b` as `a.b` and `a`."""
    found: set[str] = set()
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.update(_named(node.args[0]))
    return found


def _named(argument: ast.expr) -> set[str]:
    """Return the module that is imported by `import_module`, or the package of a composed name."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
    if ast.unparse(argument).startswith("f'{__name__}."):
        return set()  # in its own package
    assert isinstance(first, ast.Constant), ast.unparse(argument)
    return {str(first.value).removesuffix(".")}


def used_modules(file: Path) -> set[str]:
    """Return the runner's modules that a file imports; a package only where nothing of it is named."""
    found = imports(file) & MODULES.keys()
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def top_level(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


def defined(file: Path) -> set[str]:
    """Return what a module defines, assigns or imports at its top level."""
    return {name for node in parse(file).body for name in lint._bound_names(node)}


# part of the runner -> what it may import of the runner beside itself
LAYERS = {
    "runner.schema": (),
    "runner.channel": (),
    "runner.cuda_ipc": (),
    "runner.arithmetic": (),
    "runner.models": (),
    "runner.cards": (),
    "runner.baselines": (),
    "runner.contestant": (
        "runner.arithmetic",
        "runner.channel",
        "runner.cuda_ipc",
        "runner.baselines",
        "runner.models",
    ),
    "runner.lint": ("runner.schema",),
    "runner.load": ("runner.schema",),
    "runner.record": ("runner.schema", "runner.decode"),
    "runner.flags": (),
    "runner.report": ("runner.schema", "runner.analyse", "runner.waves", "runner.flags"),
    "runner.jsonl": ("runner.load",),
    "runner.files": ("runner.load",),
    "runner.gpu_lock": (),
    "runner.diagnosis": (),
    "runner.doctor_host": ("runner.load", "runner.schema", "runner.ncu", "runner.diagnosis"),
    "runner.doctor_device": ("runner.cards", "runner.schema", "runner.diagnosis"),
    "runner.judge_process": ("runner.load", "runner.gpu_lock"),
    "runner.ncu": (),
    "runner.profiled": ("runner.channel", "runner.contestant.", "runner.load", "runner.ncu"),
    "runner.export": ("runner.schema", "runner.load", "runner.record", "runner.files"),
    "runner.admit": (
        *("runner.schema", "runner.decode", "runner.load", "runner.files"),
        *("runner.gpu_lock", "runner.judge_process"),
    ),
    "runner.export_trace": ("runner.schema", "runner.export"),
    "runner.export_kernelbench": ("runner.schema", "runner.load", "runner.record", "runner.export"),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_lies_below(layer: str) -> None:
    files = [file for name, file in MODULES.items() if f"{name}.".startswith(f"{layer}.")]
    assert files
    for file in files:
        for name in used_modules(file):
            assert name.startswith((layer, *LAYERS[layer])), f"{file} imports {name}"


def test_the_runner_has_no_cycles() -> None:
    graph = {name: used_modules(file) - {name} for name, file in MODULES.items()}
    assert graph["runner.judge.__main__"]
    assert list(TopologicalSorter(graph).static_order())


def test_nothing_imports_the_command_line_and_only_it_starts_the_judge() -> None:
    users = {name for name, file in MODULES.items() if "runner.cli" in used_modules(file)}
    assert users == {"runner.__main__"}
    commands = {name for name in MODULES if name.startswith("runner.commands.")}
    users = {name for name, file in MODULES.items() if used_modules(file) & commands}
    assert users - commands == {"runner.cli"}
    outside = [name for name in MODULES if not name.startswith("runner.judge.")]
    assert not [
        name for name in outside if any(u.startswith("runner.judge.") for u in used_modules(MODULES[name]))
    ]


def test_only_the_command_line_prints() -> None:
    for name, file in MODULES.items():
        calls = [node for node in ast.walk(parse(file)) if isinstance(node, ast.Call)]
        prints = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
        loose = [c.lineno for c in prints if not any(k.arg == "file" for k in c.keywords)]
        assert not loose or name.startswith("runner.commands."), f"{file}:{loose}"


def test_the_nouns_need_the_standard_library_alone() -> None:
    assert top_level(MODULES["runner.schema"]) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", PROBLEMS, ids=lambda file: file.stem)
def test_a_problem_keeps_its_contract(file: Path) -> None:
    assert top_level(file) <= {"torch", *sys.stdlib_module_names}
    assert ast.get_docstring(parse(file))
    assert defined(file) >= {"Model", "get_inputs", "get_init_inputs", "Shape", "SWEEPS"}
    for name in ("get_inputs", "get_init_inputs"):
        (function,) = (n for n in parse(file).body if isinstance(n, ast.FunctionDef) and n.name == name)
        assert len(function.args.args) == len(function.args.defaults), f"{name}() needs arguments"


@pytest.mark.parametrize("file", SOLUTIONS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_solution_keeps_its_contract(file: Path) -> None:
    assert top_level(file) <= {"torch", "triton", *sys.stdlib_module_names}
    assert [finding for finding in lint.lint(file.read_text()) if finding.severity == lint.ERROR] == []
    assert lint.read_header(file.read_text()).technique
    assert (ROOT / "problems" / f"{file.parent.name}.py").is_file()


@pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
def test_a_baseline_keeps_its_contract(file: Path) -> None:
    assert defined(file) >= {"HEADLINE", "COLUMN", "DEFAULT", "LAYOUT", "FLAGS", "wrap"}
    assert ast.get_docstring(parse(file))


# what is done in a fresh interpreter, which then tells what it has loaded
LIGHT = {
    "explain --help": "cli.main(['explain', '--help'])",
    "profile": "from runner import agreement, profiling",
    "import": "import runner",
    "evaluate": "from runner import evaluate",
    "--help": "cli.main(['--help'])",
    "run --help": "cli.main(['run', '--help'])",
    "list": "cli.main(['list'])",
    "--dry-run": "cli.main(['--problem', 'convtranspose2d', '--dry-run', '--device', 'cpu'])",
    "export": "cli.main(['export', '--format', 'trace'])",
    "admit --help": "cli.main(['admit', '--help'])",
    "doctor": "from runner import doctor",
    "bad input": "cli.main(['--problem', 'unknown'])",
}


@pytest.mark.parametrize("name", LIGHT)
def test_what_needs_no_judge_loads_neither_torch_nor_triton(name: str) -> None:
    code = f"""
import contextlib, sys
from runner import cli
with contextlib.suppress(SystemExit):
    {LIGHT[name]}
print("loaded:", {{"torch", "triton"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert said.stdout.endswith("loaded: set()\n")


DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(
        file
        for folder in ("problems", "solutions", "runner", "results", "tests")
        for file in (ROOT / folder).rglob("*.md")
    ),
]


def anchors(file: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(file: Path) -> None:
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text()):
        target = file.parent / path if path else file
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def documented_commands() -> list[str]:
    """Return the command lines in the shell blocks of all READMEs, continued lines joined."""
    commands = []
    for file in [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]:
        text = file.read_text() if file.exists() else ""
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines()
            commands += [
                line.partition("python -m runner")[2] for line in lines if "python -m runner" in line
            ]
    return sorted(set(commands))


@pytest.mark.parametrize("command", documented_commands())
def test_a_documented_command_parses(command: str) -> None:
    words = shlex.split(command, comments=True)
    with contextlib.suppress(SystemExit):  # --help and --version; what is wrong is BadInput
        arguments.parse(words)


def test_every_module_of_the_runner_stands_in_its_table() -> None:
    table = (ROOT / "runner" / "README.md").read_text().partition("| module |")[2].partition("\n\n")[0]
    told = {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert told == {name.split(".")[1] for name in MODULES if "." in name} - {"__main__"}


def test_what_is_installed_is_all_of_the_runner() -> None:
    """An editable install finds folders that a wheel would lack."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = (file.parent.relative_to(ROOT) for file in (ROOT / "runner").rglob("__init__.py"))
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in packages)
