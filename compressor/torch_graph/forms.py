"""What is known of a value while a graph is lowered.

- Known: the value itself, because it is in the file or follows from what is;
- Host: it will be Python numbers, as shapes and what is computed from them;
- Traced: it will be a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from torch import fx


@dataclass(frozen=True)
class Known:
    """A value of the file: a tensor, an array that torch has no type for, or a list of them; `name` if it has one."""

    value: Any
    name: str | None = None


@dataclass(frozen=True)
class Host:
    """Python numbers at run time; `rank` 0 is a number, 1 a list, 2 a list of lists, None unknown."""

    expression: Any
    dtype: ir.DataType
    rank: int | None


@dataclass(frozen=True)
class Traced:
    """A tensor (or a list of them, for a sequence) at run time."""

    node: fx.Node


Form = Known | Host | Traced
