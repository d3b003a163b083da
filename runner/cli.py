"""The command line: words in, an exit code out; what a command prints is in `runner.commands`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from runner.arguments import parse
from runner.load import BadInput
from runner.streams import Unwritable, outliving_readers

#: Command -> its module in `runner.commands` and the function there, imported when it is called.
_COMMANDS = {
    "run": ("running", "run"),
    "compare": ("running", "compare_two"),
    "check": ("checking", "check"),
    "submit": ("checking", "submit_file"),
    "admit": ("checking", "admit_problem"),
    "explain": ("launches", "explain_launches"),
    "profile": ("launches", "profile_launches"),
    "import": ("records", "import_file"),
    "leaderboard": ("records", "show_boards"),
    "export": ("records", "export_records"),
    "staircase": ("records", "show_staircase"),
    "prompt": ("prompting", "prompt_page"),
    "selftest": ("machine", "run_selftest"),
    "doctor": ("machine", "examine"),
    "list": ("listing", "list_all"),
}


class Stopped(KeyboardInterrupt):
    """A signal to end has come; what is open is closed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def heed_signals() -> None:
    """Have a scheduler's or a closed terminal's signal end this process as Ctrl-C does; a second one kills.

    One that the parent ignores, as `nohup` does, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)


def main(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        with outliving_readers():
            return _main(arguments)
    except Unwritable as error:
        from runner.commands import exits  # noqa: PLC0415 - an error may take its time

        print(f"error: {error}", file=sys.stderr)
        return exits.EXIT_HARNESS


def _main(arguments: Sequence[str]) -> int:
    try:
        if not sys.platform.startswith("linux"):
            raise BadInput(f"KernelWave runs on Linux (or WSL), not on {sys.platform}")
        options = parse(arguments)
        module, function = _COMMANDS[options.command]
        code: int = getattr(import_module(f"runner.commands.{module}"), function)(options)
    except Unwritable:
        raise
    except KeyboardInterrupt as stop:
        print("interrupted: what a run has recorded stays; run it again to go on", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except Exception as error:  # noqa: BLE001 - Python would exit with 1, which says that a solution failed
        import traceback  # noqa: PLC0415 - an error may take its time

        from runner.commands import exits  # noqa: PLC0415

        known = exits.of_error(error)
        if known is None:
            traceback.print_exc()
            return exits.EXIT_HARNESS
        print(f"error: {error}", file=sys.stderr)
        return known
    return code
