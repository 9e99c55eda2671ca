"""The documentation of passes, made from their docstrings and fields."""

from __future__ import annotations

import inspect as python_inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from compressor.discover import find, names
from compressor.errors import OptionError

if TYPE_CHECKING:
    from compressor.pipeline import Pass


@dataclass(frozen=True)
class Page:
    """A pass's documentation: its docstring, and option -> (type and range, default, description)."""

    name: str
    text: str
    options: dict[str, tuple[str, str, str]]


def page(name: str) -> Page:
    """The documentation of one pass, from its docstring and fields."""
    cls = find(name)
    text = python_inspect.cleandoc(cls.__doc__ or "")
    return Page(name, text, {key: _option(cls, key) for key in cls.model_fields})


def overview() -> dict[str, str]:
    """Pass name -> the first line of its documentation, or why a third party's pass does not load."""
    return {name: _first_line(name) for name in names()}


def _first_line(name: str) -> str:
    try:
        return page(name).text.split("\n", 1)[0]
    except OptionError as error:
        return str(error)


def _option(cls: type[Pass], key: str) -> tuple[str, str, str]:
    field = cls.model_fields[key]
    return (
        _limited(_kind(field.annotation), field.metadata),
        repr(field.default),
        field.description or "",
    )


def _kind(annotation: object) -> str:
    """A type as the text form spells it: choices as they are written, several of a kind in brackets.

    >>> _kind(Literal["a", "b"] | bool), _kind(tuple[str, ...]), _kind(int)
    ("'a' | 'b' | True | False", '(text, ...)', 'int')
    >>> _kind(dict[str, float]), _kind(tuple[float, float])
    ("{'text': float}", '(float, float)')
    """
    words: dict[object, str] = {bool: "True | False", str: "text", Any: "value", Ellipsis: "..."}
    if annotation in words:
        return words[annotation]
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _limited(_kind(inner[0]), [rule for part in inner[1:] for rule in _rules(part)])
    if get_origin(annotation) is tuple:
        return f"({', '.join(_kind(part) for part in inner)})"
    if get_origin(annotation) is dict:
        return f"{{'text': {_kind(inner[1])}}}"
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in inner)
    if inner:
        return " | ".join(_kind(part) for part in inner)
    return getattr(annotation, "__name__", str(annotation))


def _rules(part: object) -> list[object]:
    """The limits of one part of an Annotated type."""
    return list(getattr(part, "metadata", [part]))


def _limited(kind: str, rules: Iterable[object]) -> str:
    return f"{kind} {', '.join(filter(None, map(_limit, rules)))}".strip()


def _limit(rule: object) -> str:
    words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(
        f"{sign} {getattr(rule, word):g}"
        for word, sign in words.items()
        if getattr(rule, word, None) is not None
    )
