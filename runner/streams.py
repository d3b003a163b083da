"""Standard streams that outlive their readers: `| head -1` takes no verdict from an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

Answer = TypeVar("Answer")


class Unwritable(Exception):
    """Standard output or error takes no more, and that is no reader's wish."""


class _Stream:
    """A stream that goes on into nothing once its reader is gone."""

    def __init__(self, inner: IO[str], name: str) -> None:
        self._inner, self._name = inner, name

    def write(self, text: str) -> int:
        return self._or_nothing(lambda: self._inner.write(text), len(text))

    def flush(self) -> None:
        self._or_nothing(self._inner.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _or_nothing(self, act: Callable[[], Answer], instead: Answer) -> Answer:
        try:
            return act()
        except BrokenPipeError:
            self._discard()
            return instead
        except OSError as error:
            self._discard()
            raise Unwritable(f"cannot write to standard {self._name}: {error.strerror}") from error

    def _discard(self) -> None:
        """Send what is left, and what the interpreter flushes on its way out, to nobody."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._inner.fileno())
        os.close(nothing)


def _opened(descriptor: int) -> IO[str]:
    """Have a closed descriptor lead nowhere, before a pipe to a judge gets its number."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != descriptor:
        os.dup2(nothing, descriptor)
        os.close(nothing)
    os.set_inheritable(descriptor, True)
    return open(descriptor, "w", closefd=False)


@contextlib.contextmanager
def outliving_readers() -> Iterator[None]:
    """Have all prints go on if nobody reads them, or a stream was closed before the start.

    Raises Unwritable for a full disk and the like, at the latest on leaving.
    """
    output, errors = _Stream(sys.stdout or _opened(1), "output"), _Stream(sys.stderr or _opened(2), "error")
    with (
        contextlib.redirect_stdout(cast("IO[str]", output)),
        contextlib.redirect_stderr(cast("IO[str]", errors)),
    ):
        yield
        output.flush()
        errors.flush()
