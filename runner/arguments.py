"""Arguments of the command line: which words there are, and what they mean when left out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from runner.load import ROOT, BadInput
from runner.schema import DTYPES

COMMANDS = ("run", "list", "check", "import", "leaderboard", "prompt", "explain", "submit")
FORMATS = ("table", "github", "json", "csv")
_EPILOG = (
    "exit codes: 0 done; 1 a solution failed; 2 wrong usage or bad input; 3 the harness failed; "
    "4 no such device"
)


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other bad input."""

    def error(self, message: str) -> None:  # type: ignore[override] # raises instead of exiting
        raise BadInput(f"{message} (see {self.prog} --help)")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; its `command` is one of COMMANDS. Raises BadInput for wrong usage.

    `run` may be left out: `python -m runner --problem NAME`.
    """
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
    _add_submit(commands.add_parser("submit", help="judge one file; keep it with its records if it passes"))
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
        default=60.0,
        metavar="S",
        help="for a call; building takes twice as much",
    )
    parser.add_argument(
        "--memory",
        type=_positive,
        metavar="GIB",
        help="host memory that a solution may hold (default: half of the machine's, at most 8)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", required=True, metavar="NAME|PATH")
    parser.add_argument(
        "--solution", action="append", default=[], metavar="NAME|PATH", help="default: all of the problem"
    )
    _add_cells(parser)
    parser.add_argument("--baseline", action="append", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="stop at an interval of 3 %% instead of 1 %%")
    parser.add_argument("--rerun", action="store_true", help="run cells that are recorded already")
    parser.add_argument("--budget", type=_positive, metavar="S", help="begin no cell after this time")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and its estimated time")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write all records to one file, for `import`"
    )
    parser.set_defaults(command="run")


def _add_leaderboard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--card", metavar="NAME", help="default: all")
    parser.add_argument("--problem", metavar="NAME", help="default: all")
    parser.add_argument("--by", choices=("shape", "dtype"), help="default: a board for each arithmetic")
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
        "--profile", type=Path, metavar="FILE", help="JSON: {metrics: {kernel: {name: value}}}"
    )
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: kernelbench"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument(
        "--answer",
        type=Path,
        metavar="FILE",
        help="hold a model's reply against the output rules, as JSON, and run it if --problem is named",
    )
    parser.add_argument("--no-run", action="store_true", help="of an answer, judge the text alone")
    _add_arithmetics(parser)
    parser.set_defaults(command="prompt")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problem", required=True, metavar="NAME|PATH")
    parser.add_argument(
        "--solution", action="append", default=[], metavar="NAME|PATH", help="default: all of the problem"
    )
    parser.add_argument(
        "--shapes", action="append", default=[], metavar="SWEEP|LABEL|k=v,...", help="default: kernelbench"
    )
    parser.add_argument("--dtype", default="fp32", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--math", default="tf32", metavar="LIST", help="default: %(default)s")
    parser.add_argument(
        "--card", action="append", default=[], metavar="NAME", help="several stand side by side"
    )
    parser.add_argument(
        "--timeout", type=_positive, default=120.0, metavar="S", help="for one cell on one card"
    )
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.set_defaults(command="explain")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--problem", required=True, metavar="NAME")
    parser.add_argument("--author", required=True, metavar="NAME")
    parser.add_argument("--name", metavar="TECHNIQUE", help="default: from the first line of the docstring")
    _add_arithmetics(parser)
    parser.add_argument("--dry-run", action="store_true", help="stop after correctness, write nothing")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR")
    parser.add_argument("--solutions", type=Path, default=ROOT / "solutions", metavar="DIR")
    parser.set_defaults(command="submit", shapes=[], card=None, baseline=[], rerun=True, quick=False)
    parser.set_defaults(budget=None, output=None)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value
