"""Names and paths -> problems, solutions and shapes. Never imports torch: solutions stay text.

A problem file is trusted. The command line needs its sweeps and formulas, not its model, so the
file is executed with stand-ins for torch; the judge executes it with the real one.
"""

from __future__ import annotations

import ast
import difflib
import importlib.abc
import importlib.machinery
import random
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.schema import HIDDEN, Shape, digest

ROOT = Path(__file__).resolve().parent.parent
MAX_SOURCE_BYTES = 2**20
_BASELINES = Path(__file__).parent / "baselines"
#: Of a file's stem, as far as it names records.
_NAME_CHARACTERS = 100
#: Of a size in a shape: any number of so many fits 64 bits.
_DIGITS = 18
#: Of a sweep or a row, so that `--shapes` can name it.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")
#: Names of sweeps that are not a problem's own: drawn by a run, and spelled on the command line.
_TAKEN = (HIDDEN, "custom")


#: Constant of a problem -> what has to hold of it, and the remedy.
_CONSTANTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "PARAMETERS": (lambda v: v in ("fixed", "fresh"), "'fixed' or 'fresh'"),
    "LIBRARY_SHARE": (lambda v: isinstance(v, (int, float)) and 0 <= v <= 1, "a share from 0 to 1"),
    "BATCH_DIM": (lambda v: type(v) is int and v == 0, "0, or leave it out: samples lie along dimension 0"),
    "LARGE": (
        lambda v: isinstance(v, (set, frozenset, list, tuple)) and all(isinstance(one, str) for one in v),
        "a set of rows' labels",
    ),
}


class BadInput(Exception):
    """What the user asked for cannot be; one line that names it and the remedy."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadInput:
    """Say that a name is unknown, with the nearest ones, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
    return BadInput(f"unknown {kind} '{name}': {hint}")


def known_names(kind: str, named: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the names that are named, each once; a text is one name.

    Raises BadInput for one that is not known, and where there is none.
    """
    chosen = tuple(dict.fromkeys(as_names(named)))
    for name in chosen or ("",):
        if name not in known:
            raise unknown(kind, str(name), known)
    return chosen


def as_names(named: str | Sequence[str]) -> tuple[str, ...]:
    """Take a text for one name, not for its letters. Raises BadInput for what holds no names."""
    if isinstance(named, str):
        return (named,)
    try:
        return tuple(map(str, named))
    except TypeError:
        raise BadInput(f"{named!r:.60} is no name and no list of names") from None


def read_source(path: Path) -> str:
    """Read a source file, or say in one line why it cannot be read."""
    try:
        if path.is_dir():
            raise BadInput(f"'{path}' is a directory: name the .py file in it")
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)  # no more, for /dev/zero has no end
    except OSError as error:
        raise BadInput(f"cannot read '{path}': {error.strerror}") from error
    return _text(data, str(path))


def _text(data: bytes, place: str) -> str:
    """Decode a source, or say what no source may have."""
    if len(data) > MAX_SOURCE_BYTES:
        raise BadInput(f"'{place}' has more than {MAX_SOURCE_BYTES} bytes, which no source may have")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"'{place}' is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\0" in text:
        raise BadInput(f"'{place}' holds NUL bytes: it is no source text")
    return text


@dataclass(frozen=True)
class Solution:
    """A candidate's text; nothing of it has been executed."""

    name: str
    path: Path
    source: str

    @property
    def digest(self) -> str:
        """Identity of the text."""
        return digest(self.source)


@dataclass(frozen=True)
class Problem:
    """A problem file; `Shape` and sweeps if it is ours, one shape if it is KernelBench's."""

    name: str
    path: Path
    source: str

    @property
    def digest(self) -> str:
        """Identity of the text."""
        return digest(self.source)

    @property
    def foreign(self) -> bool:
        """Whether the file has KernelBench's contract alone: one shape, its own inputs."""
        names = {n.name for n in self._tree.body if isinstance(n, ast.ClassDef)}
        return "Shape" not in names

    @cached_property
    def _tree(self) -> ast.Module:
        try:
            return ast.parse(self.source)
        except SyntaxError as error:
            raise BadInput(f"'{self.path}' line {error.lineno}: {error.msg}") from error
        except (MemoryError, RecursionError) as error:
            raise BadInput(f"'{self.path}' is nested too deeply to be parsed: flatten it") from error

    @cached_property
    def outline(self) -> types.ModuleType:
        """The file executed without torch: Shape, sweeps, formulas."""
        if "torch" in sys.modules:
            return self.module()
        with _stand_ins():
            return self.module()

    def module(self) -> types.ModuleType:
        """Execute the file and return it as a module."""
        module = types.ModuleType(self.name)
        module.__file__ = str(self.path)
        try:
            # the annotations of a problem are its own: this file's `from __future__` says nothing of them
            code = compile(self.source, str(self.path), "exec", dont_inherit=True)
            exec(code, module.__dict__)  # noqa: S102 - trusted by contract
        except (Exception, SystemExit) as error:
            raise BadInput(f"'{self.path}' does not run: {type(error).__name__}: {error}") from error
        return module

    def require_contract(self) -> None:
        """Raise BadInput unless the names of the contract are defined, and those that go with others."""
        names = {n.name for n in self._tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef))}
        for node in self._tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names |= {one.id for one in targets if isinstance(one, ast.Name)}
        missing = [n for n in ("Model", "get_inputs", "get_init_inputs") if n not in names]
        missing += ["SWEEPS, which a Shape needs"] if "Shape" in names and "SWEEPS" not in names else []
        for one, other in (("flops", "min_bytes"), ("min_bytes", "flops")):
            missing += [f"{one}, which {other} needs"] if other in names and one not in names else []
        if missing:
            raise BadInput(f"problem '{self.path}' does not define {', '.join(missing)}")

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Have what fails in the problem's own code be bad input."""
        try:
            yield
        except BadInput:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise BadInput(f"'{self.path}': {name} does not hold by its contract: {reason}") from error

    def sweeps(self, sms: int) -> dict[str, dict[str, Shape]]:
        """All sweeps by name, `waves` for a GPU with `sms` SMs included."""
        if self.foreign:
            return {"kernelbench": {self.name: {}}}
        with self._asked("SWEEPS"):
            found = {name: self._rows(name, rows) for name, rows in self.outline.SWEEPS.items()}
        if hasattr(self.outline, "waves"):
            with self._asked("waves"):
                found["waves"] = self._rows("waves", self.outline.waves(sms))
        self._require_sound(found)
        return found

    def _rows(self, sweep: str, rows: Any) -> dict[str, Shape]:
        """Return the rows of a sweep as plain values. Raises BadInput for one that names no shape."""
        found = {}
        for label, row in rows.items():
            place = f"'{self.path}': the row '{label}' of '{sweep}'"
            if not hasattr(row, "_asdict"):
                raise BadInput(f"{place} is a {type(row).__name__}: write a Shape, a NamedTuple")
            found[label] = _plain(row)
            for name, value in found[label].items():
                whole = value if isinstance(value, tuple) else (value,)
                if not all(isinstance(one, int) for one in whole):
                    raise BadInput(
                        f"{place} has {name} = {value!r:.40}: write whole numbers, or tuples of them"
                    )
        return found

    def _require_sound(self, sweeps: dict[str, dict[str, Shape]]) -> None:
        """Raise BadInput for names that nobody could ask for, and constants that say nothing."""
        labels = {label for rows in sweeps.values() for label in rows}
        for name in (*sweeps, *labels):
            if not (isinstance(name, str) and _LABEL.fullmatch(name)) or name in _TAKEN:
                raise BadInput(
                    f"'{self.path}': --shapes cannot name {name!r}: letters, digits and _ . @ + - can stand "
                    f"in a sweep or a label, and {' and '.join(_TAKEN)} are taken"
                )
        said = {name: getattr(self.outline, name, None) for name in _CONSTANTS}
        for name, (holds, remedy) in _CONSTANTS.items():
            if said[name] is not None and not holds(said[name]):
                raise BadInput(f"'{self.path}': {name} = {said[name]!r:.60}: {remedy}")
        unknown_labels = sorted(set(said["LARGE"] or ()) - labels)
        if unknown_labels:
            raise BadInput(f"'{self.path}': LARGE has '{unknown_labels[0]}', which is no row's label")

    def hidden_shape(self, rng: random.Random) -> Shape | None:
        """A shape that nobody could prepare for, or None where the problem has none."""
        if self.foreign or not hasattr(self.outline, "random_shape"):
            return None
        with self._asked("random_shape"):
            return _plain(self.outline.random_shape(rng))

    def shape(self, values: Shape) -> Any:
        """The problem's own `Shape` with these fields, or None for a foreign file."""
        return None if self.foreign else self.outline.Shape(**values)

    def parse_shape(self, text: str) -> Shape:
        """Read `k=v,...`, every other field at its default; `3x5` is a size per axis."""
        if self.foreign:
            raise BadInput(f"problem '{self.name}' has one shape only: leave --shapes out")
        with self._asked("Shape, without arguments,"):
            known = self.outline.Shape()._asdict()
        named: Shape = {}
        for part in text.split(","):
            key, _, value = part.partition("=")
            if key not in known:
                raise unknown("shape field", key, known)
            if key in named:
                raise BadInput(f"shape '{text}' has {key} twice: leave one out, or write two --shapes")
            named[key] = _parse_value(key, value, known[key])
        return self.valid(known | named, text)

    def valid(self, values: Shape, text: str) -> Shape:
        """Check a shape by the problem's own rules, or raise BadInput."""
        validate = getattr(self.outline, "validate", None)
        with self._asked("validate"):
            complaint = validate(self.shape(values)) if validate else None
        if complaint:
            raise BadInput(f"shape '{text}': {complaint}")
        return _plain(self.shape(values))


def _parse_value(key: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("true", "1", "yes"):
            return True
        if text.lower() in ("false", "0", "no"):
            return False
        raise BadInput(f"shape field {key}='{text}': true or false")
    if not re.fullmatch(rf"-?\d{{1,{_DIGITS}}}(x-?\d{{1,{_DIGITS}}})*", text):
        raise BadInput(
            f"shape field {key}='{text}': a whole number of at most {_DIGITS} digits, "
            "or one per axis as in 3x5"
        )
    sizes = tuple(int(part) for part in text.split("x"))
    return sizes[0] if len(sizes) == 1 else sizes


def _plain(row: Any) -> Shape:
    shape: Shape = row._asdict()
    return shape


class _Anything(type):
    """A class whose every attribute is itself, so that `class Model(torch.nn.Module)` works."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything("StandIn", (), {"__init__": lambda *_, **__: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        del path, target
        if fullname.partition(".")[0] == "torch":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


@contextmanager
def _stand_ins() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n, m in sys.modules.items() if isinstance(m, _StandIn)]:
            del sys.modules[name]


def problem_names(root: Path = ROOT) -> list[str]:
    """The problems: the files of `problems/`."""
    return sorted(p.stem for p in (root / "problems").glob("[a-z]*.py"))


def solution_names(problem: str, root: Path = ROOT) -> list[str]:
    """The solutions of a problem: the files of its folder."""
    return sorted(p.stem for p in (root / "solutions" / problem).glob("[a-z]*.py"))


def baseline_names() -> list[str]:
    """The baselines: the files of `runner/baselines/`."""
    return sorted(p.stem for p in _BASELINES.glob("[a-z]*.py"))


def default_baselines() -> list[str]:
    """The baselines of a run that names none: files with `DEFAULT = True`, which are read, not imported."""
    return [name for name in baseline_names() if _says(name, "DEFAULT")]


def chosen_baselines(named: Sequence[str]) -> tuple[str, ...]:
    """The baselines of a run that names some; the default ones run beside those of which none may lead.

    Raises BadInput for one that is not known.
    """
    named = known_names("baseline", named, baseline_names()) if named else ()
    leads = any(_says(name, "HEADLINE") for name in named)
    return tuple(dict.fromkeys(named if leads else [*default_baselines(), *named]))


def _says(baseline: str, flag: str) -> bool:
    body = ast.parse(read_source(_BASELINES / f"{baseline}.py")).body
    assigned = [n for n in body if isinstance(n, ast.Assign)]
    return any(ast.unparse(n.targets[0]) == flag and ast.literal_eval(n.value) for n in assigned)


def find_problem(name: str, root: Path = ROOT) -> Problem:
    """Find a problem by name, or by path if it looks like one."""
    if _is_path(name):
        path = Path(name)
        problem = Problem(_safe(path.stem), path.absolute(), read_source(path))  # children run in ROOT
    elif name in problem_names(root):
        path = root / "problems" / f"{name}.py"
        problem = Problem(name, path, read_source(path))
    else:
        raise unknown("problem", name, problem_names(root))
    problem.require_contract()
    return problem


def find_solution(name: str, problem: str, root: Path = ROOT) -> Solution:
    """Find a solution by name within a problem's folder, or by path if it looks like one."""
    path = Path(name) if _is_path(name) else root / "solutions" / problem / f"{name}.py"
    if not _is_path(name) and name not in solution_names(problem, root):
        raise unknown("solution", name, solution_names(problem, root))
    return Solution(_safe(path.stem), path.absolute(), read_source(path))


def solution_of(source: str, name: str) -> Solution:
    """Make a solution of a text that is in no file. Raises BadInput for what no file could hold."""
    if not isinstance(source, str):
        raise BadInput(f"the source is of type {type(source).__name__}: give the solution's text, a str")
    if name != _safe(name):
        raise BadInput(
            f"name {name!r} cannot name records: letters, digits, '_' and '-' can, as in '{_safe(name)}'"
        )
    return Solution(name, Path(f"{name}.py"), _text(source.encode(errors="surrogatepass"), name))


def require_distinct(solutions: Iterable[Solution]) -> list[Solution]:
    """Return each solution once, whatever leads to its file.

    Raises BadInput for two files that give one name, for their records could not be told apart.
    """
    found: dict[str, Solution] = {}
    for one in solutions:
        first = found.setdefault(one.name, one)
        if first.path.resolve() != one.path.resolve():
            raise BadInput(
                f"'{first.path}' and '{one.path}' would both be recorded as '{one.name}': "
                "rename one, or run them apart"
            )
    return list(found.values())


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith(".py")


def _safe(stem: str) -> str:
    """A name that can stand in a path of `results/`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).lstrip("_-")[:_NAME_CHARACTERS] or "unnamed"
