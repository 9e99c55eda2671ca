"""Every error that is the user's to mend.

    CompressorError
      ModelError      the model file, or what it contains
      DataError       the samples or their labels
      OptionError     an argument, a pass name, a pass option, a provider
      GateError       a limit that the user set was broken

The command line prints these as one line and no traceback; anything else is a bug and keeps its traceback.
A message says who, what is wrong, what was given, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CompressorError(Exception):
    """Something that the user can mend; its text says how."""


class ModelError(CompressorError):
    """The model cannot be read, run or written."""


class DataError(CompressorError):
    """The samples do not fit the model, or are not usable."""


class OptionError(CompressorError):
    """An argument or option is outside what is possible."""


class GateError(CompressorError):
    """A limit was broken."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest known word, or lists them all.

    >>> did_you_mean("prun-magnitude", ["prune-magnitude", "finetune"])
    "Did you mean 'prune-magnitude'?"
    >>> did_you_mean("zzz", ["b", "a"])
    'Known: a, b.'
    """
    names = sorted(known)
    near = get_close_matches(word, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(names)}."


def root_cause(error: BaseException) -> str:
    """What lies at the beginning of a chain of errors, as one line of at most 200 characters.

    >>> root_cause(ValueError("a\\n  b"))
    'a b'
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]
