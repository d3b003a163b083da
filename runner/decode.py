"""Plain JSON -> frozen values, strictly by their annotations; the way back is `schema.to_json`."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


class Malformed(ValueError):
    """A value is not of the kind it should be; the text names the place."""


def decode(kind: type, value: Any) -> Any:
    """Rebuild a dataclass of the schema from JSON's types; unknown fields are ignored.

    Raises Malformed for anything that does not fit the annotations exactly.
    """
    return _build(kind, value, "")


_type_hints = functools.cache(get_type_hints)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn plain JSON into a value of the annotated type `kind`, or raise `Malformed` naming the place."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _build_fields(kind, value, where)
    if origin is UnionType:
        return _build_union(arguments, value, where)
    if origin is tuple:
        return _build_tuple(arguments, value, where)
    if origin is dict:
        entries = _expect(dict, value, where).items()
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in entries}
    return _build_scalar(kind, value, where)


def _build_fields(kind: Any, value: Any, where: str) -> Any:
    data = _expect(dict, value, where)
    known = {
        name: _build(hint, data[name], f"{where}.{name}".lstrip("."))
        for name, hint in _type_hints(kind).items()
        if name in data
    }
    try:
        return kind(**known)
    except TypeError as error:  # names the fields that are missing
        raise Malformed(f"{where or 'record'}: {error}") from None


def _build_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    *first, last = [kind for kind in kinds if kind is not NoneType]
    for kind in first:
        with contextlib.suppress(Malformed):
            return _build(kind, value, where)
    return _build(last, value, where)


def _build_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    items = _expect(list, value, where)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(items)
    if len(items) != len(kinds):
        raise Malformed(f"{where}: {len(items)} items, expected {len(kinds)}")
    return tuple(
        _build(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, items, strict=True))
    )


def _build_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if issubclass(kind, StrEnum):
        if value not in list(kind):
            raise Malformed(f"{where}: {value!r:.40} is no {kind.__name__}")
        return kind(value)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise Malformed(f"{where}: not finite")
    return _expect(kind, value, where)


def _expect(kind: Any, value: Any, where: str) -> Any:
    """Return `value` if it is exactly of type `kind`: JSON's true is no number."""
    if type(value) is not kind:
        raise Malformed(f"{where or 'record'}: {value!r:.40} is no {kind.__name__}")
    return value
