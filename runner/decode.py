"""Plain JSON -> frozen values, strictly by their annotations; the way back is `schema.to_json`."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

_Build = Callable[[Any], Any]


class Malformed(ValueError):
    """A value is not of the kind it should be; the text names the place."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{place.lstrip('.') or 'record'}: {reason}")
        self._reason, self._place = reason, place

    def within(self, part: str) -> Malformed:
        """Say the same of a value that is a part of another one."""
        return Malformed(self._reason, part + self._place)


def decode(kind: type, value: Any) -> Any:
    """Rebuild a dataclass of the schema from JSON's types; unknown fields are ignored.

    Raises Malformed for anything that does not fit the annotations exactly.
    """
    return _builder(kind)(value)


@functools.cache
def _builder(kind: Any) -> _Build:
    """Return what turns plain JSON into a value of an annotated type, or raises `Malformed`.

    An annotation is looked through once, not once a value: a folder of records has millions.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return functools.partial(_fields, kind, {n: _builder(h) for n, h in get_type_hints(kind).items()})
    if origin is UnionType:
        builders = [_builder(one) for one in arguments if one is not NoneType]
        return functools.partial(_union, builders, NoneType in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return functools.partial(_tuple_of, _builder(arguments[0]))
    if origin is tuple:
        return functools.partial(_tuple, [_builder(one) for one in arguments])
    if origin is dict:
        return functools.partial(_dict, _builder(arguments[1]))
    return _scalar_builder(kind)


def _scalar_builder(kind: Any) -> _Build:
    if kind is Any:
        return lambda value: value
    if issubclass(kind, StrEnum):
        return functools.partial(_member, kind)
    return _float if kind is float else functools.partial(_expect, kind)


def _fields(kind: Any, builders: dict[str, _Build], value: Any) -> Any:
    data = _expect(dict, value)
    known = {name: _part(build, data[name], f".{name}") for name, build in builders.items() if name in data}
    try:
        return kind(**known)
    except TypeError as error:  # names the fields that are missing
        raise Malformed(str(error)) from None


def _part(build: _Build, value: Any, place: str) -> Any:
    try:
        return build(value)
    except Malformed as error:
        raise error.within(place) from None


def _union(builders: list[_Build], optional: bool, value: Any) -> Any:
    if value is None and optional:
        return None
    *first, last = builders
    for build in first:
        with contextlib.suppress(Malformed):
            return build(value)
    return last(value)


def _tuple_of(build: _Build, value: Any) -> tuple[Any, ...]:
    items = _expect(list, value)
    if build is _float and {*map(type, items)} == {float} and all(map(math.isfinite, items)):
        return tuple(items)  # times, which are most of a record
    return _tuple([build] * len(items), items)


def _tuple(builders: list[_Build], value: Any) -> tuple[Any, ...]:
    items = _expect(list, value)
    if len(items) != len(builders):
        raise Malformed(f"{len(items)} items, expected {len(builders)}")
    return tuple(_part(*one, f"[{i}]") for i, one in enumerate(zip(builders, items, strict=True)))


def _dict(build: _Build, value: Any) -> dict[str, Any]:
    return {key: _part(build, item, f".{key}") for key, item in _expect(dict, value).items()}


def _member(kind: type[StrEnum], value: Any) -> StrEnum:
    if value not in list(kind):
        raise Malformed(f"{value!r:.40} is no {kind.__name__}")
    return kind(value)


def _float(value: Any) -> float:
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed("not finite")
    number: float = _expect(float, value)
    return number


def _expect(kind: Any, value: Any) -> Any:
    """Return `value` if it is exactly of type `kind`: JSON's true is no number."""
    if type(value) is not kind:
        raise Malformed(f"{value!r:.40} is no {kind.__name__}")
    return value
