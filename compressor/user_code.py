"""Code of the user's own, named `module_or_file.py:name`: how it is found, and what it may raise."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.errors import CompressorError, OptionError, did_you_mean

ADDRESS = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")
"""`module:name` or `file.py:name`."""

FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What the user's code may raise; its message becomes ours. KeyboardInterrupt and SystemExit pass."""


def load_object(
    address: str,
    who: str,
    noun: str = "function",
    fits: Callable[[object], bool] = callable,
    refusal: type[CompressorError] = OptionError,
) -> Any:
    """The object that `module:name` or `file.py:name` names.

    Args:
        address: a module on Python's path or in the working folder, or a file.
        who: what it is for, in messages.
        noun: what it should be, in messages.
        fits: whether an object is one.
        refusal: the class of the errors.

    Raises:
        OptionError, or the refusal: no such file, module or name, or the code raises when it is run.
    """
    place, colon, wanted = address.rpartition(":")
    if not colon:
        raise refusal(f"{who}: {address!r} names no {noun}. Give module:name or file.py:name.")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise refusal(f"{who}: there is no file {place!r}.")
    try:
        with importable(place):
            module = run_file(Path(place)) if is_file else import_module(place)
    except FOREIGN as error:
        hint = f" Give a file as folder/{place}.py:{wanted}." if _is_missing(error, place) else ""
        raise refusal(f"{who}: {place!r} cannot be imported: {_told(error)}.{hint}") from error
    found = vars(module).get(wanted)
    if found is None or not fits(found):
        known = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
        hint = did_you_mean(wanted, known) if known else "It has none."
        raise refusal(f"{who}: no {noun} {wanted!r} in {place!r}. {hint}")
    return found


def run_file(path: Path) -> ModuleType:
    """The module that a file makes when it is run; anew at every call, from the source as it is now."""
    whole = path.resolve()
    module = ModuleType(f"_user_{hashlib.sha256(bytes(whole)).hexdigest()[:12]}")
    module.__file__ = str(whole)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up by name
    # Not by importlib: its bytecode is stale when a file changes within a second.
    exec(compile(whole.read_bytes(), str(whole), "exec", dont_inherit=True), vars(module))
    return module


@contextmanager
def importable(place: str) -> Iterator[None]:
    """Let modules beside a file, or those in the working folder, be found, as when Python runs them."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _is_missing(error: BaseException, place: str) -> bool:
    """Whether it is the named module that is missing, and none that it imports."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return bool(missing) and f"{place}.".startswith(f"{missing}.")


def _told(error: BaseException) -> str:
    """What was raised and where, in one line; an import that failed needs no more than its text."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{'' if isinstance(error, SyntaxError) else where}"
