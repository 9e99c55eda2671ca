"""Code of the user's own, named `module_or_file.py:name`: how it is found, and what it may raise."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from compressor.errors import OptionError, did_you_mean, root_cause

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
    address: str, who: str, noun: str = "function", fits: Callable[[object], bool] = callable
) -> Any:
    """The object that `module:name` or `file.py:name` names.

    Args:
        address: a module on Python's path, or a file, whose folder can be imported from meanwhile.
        who: what it is for, in messages.
        noun: what it should be, in messages.
        fits: whether an object is one.

    Raises:
        OptionError: no such file, module or name, or the code raises when it is run.
    """
    place, _, wanted = address.rpartition(":")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise OptionError(f"{who}: there is no file {place!r}.")
    try:
        with importable(Path(place).resolve().parent if is_file else Path.cwd()):
            module = run_file(Path(place)) if is_file else import_module(place)
    except FOREIGN as error:
        raise OptionError(f"{who}: {place!r} cannot be imported: {root_cause(error)}.") from error
    found = vars(module).get(wanted)
    if found is None or not fits(found):
        known = [key for key, value in vars(module).items() if fits(value) and not key.startswith("_")]
        hint = did_you_mean(wanted, known) if known else "It has none."
        raise OptionError(f"{who}: no {noun} {wanted!r} in {place!r}. {hint}")
    return found


def run_file(path: Path) -> ModuleType:
    """The module that a file makes when it is run, anew at every call."""
    whole = path.resolve()
    loader = SourceFileLoader(f"_user_{hashlib.sha256(bytes(whole)).hexdigest()[:12]}", str(whole))
    module = ModuleType(loader.name)
    module.__file__ = str(whole)
    sys.modules[loader.name] = module  # dataclasses and pickle look their module up by name
    loader.exec_module(module)
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules in a folder be found, as when a file in it is run."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
