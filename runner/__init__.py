"""KernelWave's runner: `python -m runner`, or `from runner import evaluate`."""

from __future__ import annotations

from typing import Any

__all__ = ["evaluate"]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> Any:
    """Load the library entry on first use: importing `runner` stays light."""
    if name == "evaluate":
        from runner.library import evaluate  # noqa: PLC0415 - lazily, or `--help` would pay for it

        return evaluate
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
