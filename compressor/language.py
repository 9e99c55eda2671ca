"""The text form of passes and data: `name{option=value ...}`, values as Python literals or bare words.

In a text with several passes commas and line breaks stand between them, and `#` starts a comment.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from compressor.errors import OptionError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_GAP = re.compile(r"(?:[\s,]|#[^\n]*)*")
_VALUE = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,{}'"#])+""")


def read(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options) of each pass in the text form."""
    at = skip(text, 0)
    while at < len(text):
        name, at = word(text, at, "a pass name")
        options: dict[str, Any] = {}
        at = skip(text, at)
        if text[at : at + 1] == "{":
            at = skip(text, at + 1)
            while text[at : at + 1] != "}":
                key, at = word(text, at, f"an option of {name}, or '}}'")
                if text[at : at + 1] != "=":
                    raise OptionError(f"Pipeline: expected '=' after {key!r} {_where(text, at)}.")
                if key in options:
                    raise OptionError(
                        f"Pipeline: option {key!r} of {name} is given twice {_where(text, at)}."
                    )
                options[key], at = literal(text, at + 1)
                at = skip(text, at)
            at = skip(text, at + 1)
        yield name, options


def skip(text: str, at: int) -> int:
    """The position behind white space, commas and comments."""
    match = _GAP.match(text, at)
    return match.end() if match else at


def word(text: str, at: int, wanted: str) -> tuple[str, int]:
    """A name and the position behind it; OptionError says what was wanted there."""
    match = _NAME.match(text, at)
    if not match:
        raise OptionError(f"Pipeline: expected {wanted} {_where(text, at)}.")
    return match.group(), match.end()


def literal(text: str, at: int) -> tuple[Any, int]:
    """A Python literal or a bare word; brackets may contain spaces and commas."""
    if text[at : at + 1] in ("[", "(", "{"):
        end = _closing(text, at)
    else:
        match = _VALUE.match(text, at)
        end = match.end() if match else at
    found = text[at:end]
    if text[end : end + 1] in ("'", '"'):
        raise OptionError(f"Pipeline: the quote is not closed {_where(text, end)}.")
    if not found:
        raise OptionError(f"Pipeline: expected a value {_where(text, at)}.")
    if found in ("true", "false"):
        return found == "true", end
    if _NAME.fullmatch(found) and found not in ("True", "False", "None"):
        return found, end
    try:
        value = ast.literal_eval(found)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise OptionError(
            f"Pipeline: {found!r} is not a Python literal {_where(text, at)}. Put it in quotes: {found!r}."
        ) from None
    return (tuple(value) if isinstance(value, list) else value), end


def _closing(text: str, at: int) -> int:
    """The position after the bracket that closes the one at `at`, quotes respected."""
    depth, quote, escaped = 0, "", False
    for end in range(at, len(text)):
        c = text[end]
        if escaped:
            escaped = False
        elif quote:
            escaped, quote = c == "\\", "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "[({":
            depth += 1
        elif c in "])}":
            depth -= 1
            if not depth:
                return end + 1
    raise OptionError(f"Pipeline: the bracket is not closed {_where(text, at)}.")


def _where(text: str, at: int) -> str:
    """The place in words: line, when there are several, column, and the text that follows or went before."""
    rest = text[at:].split("\n", 1)[0]
    if not rest:
        return f"at the end of {text[:at][-30:]!r}"
    line = f"line {text.count(chr(10), 0, at) + 1}, " if "\n" in text else ""
    return f"at {line}column {at - text.rfind(chr(10), 0, at)}, before {rest[:30]!r}"
