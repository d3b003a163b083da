"""Stages of optimisation: one file of data per stage, and the directory listing is the registry.

Names of metrics are Nsight Compute's, of Ampere and later.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A counter to look at; `target` is what to reach, empty where there is nothing to reach."""

    name: str
    target: str = ""


@dataclass(frozen=True)
class Stage:
    """What a prompt says of one focus: metrics with targets, rules, and what to leave alone."""

    focus: str
    metrics: tuple[Metric, ...]
    rules: tuple[str, ...]
    safety: tuple[str, ...]


def stage_names() -> tuple[str, ...]:
    """List the stages, sorted: the files of this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_stage(name: str) -> Stage:
    """Import one stage. Raises ModuleNotFoundError when there is none of that name."""
    stage: Stage = importlib.import_module(f"{__name__}.{name}").STAGE
    return stage
