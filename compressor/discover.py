"""From a pass name to its class: the folder `passes` is the registry, and third parties add an entry point.

One name, four spellings: `prune-nm` on the command line, `PruneNm` the class, `passes/prune_nm.py` its file,
`tests/passes/test_prune_nm.py` its test. A third party exposes its class in the entry-point group
`compressor.passes`, under the pass's name.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from compressor.errors import OptionError, did_you_mean

if TYPE_CHECKING:
    from compressor.pipeline import Pass

GROUP = "compressor.passes"
_LOADING = (ImportError, AttributeError, SyntaxError, NameError, TypeError, ValueError, OSError)
"""What importing a third party's module raises when it does not fit this Python or these versions."""


def names() -> tuple[str, ...]:
    """The names of all passes that can be used, sorted."""
    return tuple(sorted({*_shipped(), *(point.name for point in _foreign())}))


def find(name: str) -> type[Pass]:
    """The class of the pass called `name`; OptionError with a suggestion when there is none."""
    if name in _shipped():
        module = import_module(f"passes.{name.replace('-', '_')}")
        cls: type[Pass] = getattr(module, "".join(word.capitalize() for word in name.split("-")))
        return cls
    for point in _foreign():
        if point.name == name:
            return _load(point)
    raise OptionError(f"No pass named {name!r}. {did_you_mean(name, names())}")


@cache
def _shipped() -> tuple[str, ...]:
    package = import_module("passes")
    return tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__))


def _foreign() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _load(point: EntryPoint) -> type[Pass]:
    from compressor.pipeline import Pass

    try:
        cls = point.load()
    except _LOADING as error:
        raise OptionError(f"Pass {point.name!r} ({point.value}) cannot be loaded: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, Pass)) or getattr(cls, "name", None) != point.name:
        raise OptionError(f"Pass {point.name!r}: {point.value} is not a Pass with that name.")
    return cls
