"""Arguments of the command line: which words there are, and what they mean when left out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.load import ROOT, BadInput, unknown
from runner.schema import CALL_S, DTYPES, ISOLATION, MATHS, MEMORY_BYTES

COMMANDS = (
    *(
        "run",
        "list",
        "check",
        "import",
        "leaderboard",
        "prompt",
        "explain",
        "submit",
        "export",
        "compare",
        "selftest",
    ),
    *("staircase", "profile", "admit", "doctor"),
)
ARITHMETICS = (*MATHS, *DTYPES[1:])
FORMATS = ("table", "github", "json", "csv")
#: More seconds, GiB or SMs than anybody has; what waits counts milliseconds in 31 bits.
MOST = 1_000_000
_OTHER_CODES = (
    "2 wrong usage or bad input; 3 the harness failed; 4 no such device, or another run has it; "
    "130 interrupted"
)
_EPILOG = f"exit codes: 0 done; 1 a solution failed; {_OTHER_CODES}"
_DOCTOR_EPILOG = (
    f"exit codes: 0 nothing is missing on the device; 1 something is to be mended; {_OTHER_CODES}"
)


class _Once(argparse.Action):
    """Takes an option's value, once: of two the first would be lost without a word."""

    given = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string and self.given:
            parser.error(f"{option_string} is given twice: give one, or run twice")
        self.given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other bad input."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("action", None, _Once)

    def error(self, message: str) -> None:  # type: ignore[override] # raises instead of exiting
        raise BadInput(f"{message} (see {self.prog} --help)")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; its `command` is one of COMMANDS. Raises BadInput for wrong usage.

    `run` may be left out: `python -m runner --problem NAME`.
    """
    for before, word in zip(("", *words), words, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            raise BadInput(
                f"{(word or before or 'a word').rstrip('=')} is empty: name something, or leave it out"
            )
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    plain = words and (words[0] in COMMANDS or words[0] in ("-h", "--help", "--version"))
    return parser().parse_args(words if plain else ["run", *words])


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    whole = _Parser(
        prog="python -m runner", description="KernelWave: GPU kernels against PyTorch", epilog=_EPILOG
    )
    whole.add_argument("--version", action="version", version=_version())
    commands = whole.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(
        commands.add_parser("run", help="check and time solutions (the default command)", epilog=_EPILOG)
    )
    listing = commands.add_parser("list", help="problems, sweeps, solutions, baselines, cards, stages")
    listing.set_defaults(command="list")
    checking = commands.add_parser("check", help="lint and correctness of one file, nothing is recorded")
    checking.add_argument("file", metavar="FILE")
    checking.add_argument("--problem", required=True, metavar="NAME|PATH")
    checking.add_argument(
        "--rules",
        choices=("owner",),
        help="also hold it against the output rules of `prompt`, which bind then",
    )
    _add_cells(checking)
    checking.set_defaults(command="check")
    importing = commands.add_parser("import", help="sort in records that another machine wrote with -o")
    importing.add_argument("file", type=Path, metavar="FILE")
    importing.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    importing.set_defaults(command="import")
    _add_leaderboard(commands.add_parser("leaderboard", help="rank what is recorded"))
    _add_prompt(commands.add_parser("prompt", help="a page for whoever wants to do better"))
    _add_explain(commands.add_parser("explain", help="launches on a card that need not be there"))
    _add_profile(commands.add_parser("profile", help="what Nsight Compute counts on the GPU that is here"))
    _add_staircase(commands.add_parser("staircase", help="time against tiles at the edges of waves"))
    _add_compare(commands.add_parser("compare", help="two solutions in the same rounds: one verdict a shape"))
    testing = commands.add_parser("selftest", help="what the numbers of this machine are worth")
    testing.add_argument("part", nargs="*", metavar="PART", help="default: all")
    testing.add_argument("--device", metavar="cuda:N", help="default: the first GPU")
    testing.add_argument("--format", choices=("table", "json"), default="table")
    testing.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="append the findings as JSON lines"
    )
    testing.set_defaults(command="selftest")
    _add_submit(commands.add_parser("submit", help="judge one file; keep it with its records if it passes"))
    _add_export(commands.add_parser("export", help="records as other suites read them"))
    _add_admit(commands.add_parser("admit", help="are wrong answers refused on every shape of a problem?"))
    _add_doctor(commands.add_parser("doctor", help="what this machine can measure, and how to mend it"))
    return whole


def _version() -> str:
    try:
        return f"kernelwave {metadata.version('kernelwave')}"
    except metadata.PackageNotFoundError:
        return "kernelwave (a checkout that is not installed)"


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: by device"
    )
    _add_arithmetics(parser)
    parser.add_argument(
        "--card", metavar="NAME", help="GPU that the sweep `waves` is placed for (default: rtx4090)"
    )


def _add_arithmetics(parser: argparse.ArgumentParser) -> None:
    """Add in which arithmetics, where and within which limits a solution is judged."""
    parser.add_argument(
        "--dtype", default="fp32,fp16", metavar="LIST", help=f"of {', '.join(DTYPES)} (default: %(default)s)"
    )
    parser.add_argument(
        "--math", default="tf32,fp32", metavar="LIST", help="accuracy of fp32 cells (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="cpu|cuda:N", help="default: a GPU if there is one")
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=CALL_S,
        metavar="S",
        help="for a call; building takes twice as much (default: %(default)g)",
    )
    parser.add_argument(
        "--memory",
        type=_positive,
        metavar="GIB",
        help="host memory that a solution may hold (default: half of the machine's, at most "
        f"{MEMORY_BYTES >> 30})",
    )


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add how long is measured: quick, as a default, or ranked."""
    protocol = parser.add_mutually_exclusive_group()
    protocol.add_argument("--quick", action="store_true", help="stop at an interval of 3 %% instead of 1 %%")
    protocol.add_argument(
        "--ranked", action="store_true", help="in 5 fresh processes, with an interval over them"
    )


def _add_solutions(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", required=True, metavar="NAME|PATH")
    parser.add_argument(
        "--solution", action="append", default=[], metavar="NAME|PATH", help="default: all of the problem"
    )


def _add_look(parser: argparse.ArgumentParser) -> None:
    """Add what a command that explains, and judges nothing, looks at."""
    _add_solutions(parser)
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: kernelbench"
    )
    parser.add_argument("--dtype", default="fp32", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--math", default="tf32", metavar="LIST", help="default: %(default)s")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_solutions(parser)
    _add_cells(parser)
    parser.add_argument(
        "--baseline", action="append", default=[], metavar="NAME", help="default: the plain ones of `list`"
    )
    _add_protocol(parser)
    parser.add_argument(
        "--sms",
        type=_count,
        default=0,
        metavar="N",
        help="time on N SMs of a larger GPU: solution and baselines",
    )
    parser.add_argument("--rerun", action="store_true", help="run cells that are recorded already")
    parser.add_argument("--budget", type=_positive, metavar="S", help="begin no cell after this time")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its estimated time")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write all records to one file, for `import`, and none to DIR",
    )
    parser.set_defaults(command="run")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("solution", metavar="A")
    parser.add_argument("other", metavar="B")
    parser.add_argument("--problem", required=True, metavar="NAME|PATH")
    _add_cells(parser)
    _add_protocol(parser)
    parser.add_argument(
        "--sms", type=_count, default=0, metavar="N", help="time on N SMs of a larger GPU: both solutions"
    )
    parser.add_argument("--format", choices=("table", "github", "json"), default="table")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="append a JSON line a shape, raw samples included"
    )
    parser.set_defaults(command="compare", baseline=[], rerun=True, budget=None, results=ROOT / "results")


def _add_leaderboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--card", metavar="NAME", help="default: all")
    parser.add_argument("--problem", metavar="NAME", help="default: all")
    parser.add_argument(
        "--by", choices=("shape", "dtype", "sweep"), help="default: a board for each arithmetic"
    )
    parser.add_argument("--format", choices=(*FORMATS, "html"), default="table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder for --format html")
    output.add_argument("--write", action="store_true", help="put all boards into the README of DIR")
    output.add_argument("--check", action="store_true", help="exit 1 unless that README shows them")
    parser.set_defaults(command="leaderboard")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", metavar="NAME|PATH")
    parser.add_argument("--solution", metavar="NAME|PATH")
    parser.add_argument("--stage", metavar="NAME", help="see `list`")
    parser.add_argument("--card", default="rtx4090", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--profile", type=_file("JSON"), metavar="FILE", help="JSON: {metrics: {kernel: {name: value}}}"
    )
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: kernelbench"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument(
        "--answer",
        type=_file("Markdown"),
        metavar="FILE",
        help="hold a model's reply against the output rules, as JSON, and run it if --problem is named",
    )
    parser.add_argument(
        "--feedback",
        type=_file("JSON"),
        metavar="FILE",
        help="what --answer printed: the page then tells what failed there, not in DIR",
    )
    parser.add_argument(
        "--no-run", action="store_true", help="judge the text of an answer alone; predict no metrics"
    )
    parser.add_argument(
        "--dtype", default="fp32", metavar="LIST", help=f"of {', '.join(DTYPES)} (default: %(default)s)"
    )
    parser.add_argument(
        "--math", default="tf32", metavar="LIST", help="accuracy of fp32 cells (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=CALL_S,
        metavar="S",
        help="for predictions, or a call of an answer",
    )
    answering = parser.add_argument_group("of an answer alone")
    answering.add_argument("--device", metavar="cpu|cuda:N", help="default: a GPU if there is one")
    answering.add_argument("--memory", type=_positive, metavar="GIB", help="host memory that it may hold")
    parser.set_defaults(command="prompt")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_look(parser)
    parser.add_argument(
        "--card", action="append", default=[], metavar="NAME", help="several stand side by side"
    )
    parser.add_argument(
        "--timeout", type=_positive, default=120.0, metavar="S", help="for one cell on one card"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "results",
        metavar="DIR",
        help="records that may tell which of several configurations ran",
    )
    parser.set_defaults(command="explain")


def _add_staircase(parser: argparse.ArgumentParser) -> None:
    _add_solutions(parser)
    parser.add_argument("--card", metavar="NAME", help="default: all that have records")
    parser.add_argument("--format", choices=(*FORMATS, "svg"), default="table", help="svg: a picture")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.set_defaults(command="staircase")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    _add_look(parser)
    parser.add_argument("--stage", metavar="NAME", help="count its metrics too; see `list`")
    parser.add_argument(
        "--metrics", default="", metavar="NAME,...", help="count these too (ncu --query-metrics lists them)"
    )
    parser.add_argument(
        "--clock-control", choices=("base", "none"), default="none", help="base: at locked, lower clocks"
    )
    parser.add_argument(
        "--cache-control", choices=("all", "none"), default="all", help="all: from cold caches (default)"
    )
    parser.add_argument(
        "--against-explain",
        action="store_true",
        help="compare what `explain` predicts of each launch with what ncu reports, and nothing else",
    )
    parser.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help="for one solution")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write the JSON there, for `prompt --profile`; with --against-explain append sums as JSON lines",
    )
    parser.set_defaults(command="profile")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--problem", required=True, metavar="NAME")
    parser.add_argument("--author", required=True, metavar="NAME")
    parser.add_argument("--name", metavar="TECHNIQUE", help="default: from the first line of the docstring")
    _add_arithmetics(parser)
    _add_protocol(parser)
    parser.add_argument("--dry-run", action="store_true", help="stop after correctness, write nothing")
    parser.add_argument(
        "--require",
        choices=ISOLATION,
        default=ISOLATION[-1],
        help="isolation that is enough to keep times; below %(default)s they are not ranked",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--solutions", type=Path, default=ROOT / "solutions", metavar="DIR")
    parser.set_defaults(command="submit", shapes=[], card=None, baseline=[], rerun=True, sms=0)
    parser.set_defaults(budget=None, output=None)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=("trace", "kernelbench"),
        required=True,
        help="flashinfer-bench's Trace lines, or KernelBench's eval_results.json for one card",
    )
    parser.add_argument("--problem", metavar="NAME", help="default: all")
    parser.add_argument("--solution", metavar="NAME", help="default: all")
    parser.add_argument("--card", metavar="NAME", help="default: all")
    parser.add_argument(
        "--arithmetic",
        choices=ARITHMETICS,
        help="default: all; for KernelBench tf32, which is what it calls fp32",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.set_defaults(command="export")


def _add_admit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", required=True, metavar="NAME|PATH")
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: by device"
    )
    parser.add_argument("--dtype", default=",".join(DTYPES), metavar="LIST", help="default: all, %(default)s")
    parser.add_argument(
        "--math", default="tf32,fp32", metavar="LIST", help="accuracy of fp32 cells (default: %(default)s)"
    )
    parser.add_argument("--device", metavar="cpu|cuda:N", help="default: a GPU if there is one")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="keep one JSON line a cell, in place of older ones"
    )
    parser.set_defaults(command="admit")


def _file(kind: str) -> Callable[[str], Path]:
    """Read a path to a file of another kind than Python's, which a folder is not."""

    def read(text: str) -> Path:
        if Path(text).is_dir():
            raise argparse.ArgumentTypeError(f"'{text}' is a directory: name the {kind} file in it")
        return Path(text)

    return read


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() and len(text) <= len(str(MOST)) else 0
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive whole number up to {MOST}")
    return value


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="cpu|cuda:N", help="default: a GPU if there is one")
    parser.add_argument(
        "--require",
        choices=ISOLATION,
        default=ISOLATION[-1],
        help="isolation of contestants that is enough (default: %(default)s)",
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.set_defaults(command="doctor")
    parser.epilog = _DOCTOR_EPILOG


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number up to {MOST}")
    return value
