"""The documentation of passes, made from their docstrings and fields."""

from __future__ import annotations

import inspect as python_inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args, get_origin

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
    limits = ", ".join(_limit(rule) for rule in field.metadata)
    return (f"{_kind(field.annotation)} {limits}".strip(), repr(field.default), field.description or "")


def _kind(annotation: object) -> str:
    """A type as the text form spells it: choices as they are written, a tuple as texts.

    >>> _kind(Literal["a", "b"] | bool), _kind(tuple[str, ...]), _kind(int)
    ("'a' | 'b' | True | False", 'texts', 'int')
    """
    if annotation is bool:
        return "True | False"
    if get_origin(annotation) is tuple:
        return "texts"
    if get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in get_args(annotation))
    if get_args(annotation):
        return " | ".join(_kind(part) for part in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def _limit(rule: object) -> str:
    words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " ".join(
        f"{sign} {getattr(rule, word):g}"
        for word, sign in words.items()
        if getattr(rule, word, None) is not None
    )
