"""Codes of few bits: a weight w as code * scale, the code a small integer, one scale per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, get_args

import numpy as np

Name = Literal["twn", "optimal", "ttq", "xnor", "residual", "uniform"]
TERNARY: tuple[Name, ...] = ("twn", "optimal", "ttq")
BINARY: tuple[Name, ...] = ("xnor", "residual")


@dataclass(frozen=True)
class Method:
    """How codes are found.

    Args:
        name: twn, optimal and ttq give ternary codes; xnor and residual binary ones; uniform evenly spaced ones.
        count: binary bases of residual (1, 2 or 3); bits of uniform (2, 3, 4 or 8); 0 for the others.

    >>> str(Method("uniform", 4)), Method.parse("twn")
    ('uniform 4', Method(name='twn', count=0))
    """

    name: Name
    count: int = 0

    def __str__(self) -> str:
        """As it stands in a file: the name, and the count unless it is 0."""
        return f"{self.name} {self.count}" if self.count else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """The method that `str` wrote; ValueError for any other text."""
        name, _, count = text.partition(" ")
        if name not in get_args(Name):
            raise ValueError(f"no method {text!r}")
        return cls(name, int(count or 0))  # type: ignore[arg-type]

    @property
    def levels(self) -> int:
        """How many different codes a row may have.

        >>> [Method(*given).levels for given in (("twn",), ("xnor",), ("residual", 2), ("uniform", 3), ("uniform", 2))]
        [3, 2, 4, 7, 3]
        """
        if self.name in TERNARY:
            return 3
        return int(2 ** max(self.count, 1) if self.name in BINARY else 2**self.count - 1)

    @property
    def bits(self) -> float:
        """Bits per weight in a packed file, scales not counted: 1, 1.6 (five ternary codes in a byte), 2, 3, 4 or 8.

        >>> Method("twn").bits, Method("residual", 2).bits, Method("uniform", 8).bits
        (1.6, 2, 8)
        """
        if self.name in TERNARY or self == Method("uniform", 2):
            return 1.6
        return max(self.count, 1)


class Codes(NamedTuple):
    """Rows of a weight as code * scale.

    Args:
        codes: int8 [rows, n]. Ternary: -1, 0, 1 (ttq: -a, 0, b with max(a, b) = 127, a and b of each row). Binary:
            -1, 1 (residual with k bases: +-r1 +-...+-rk, r of each row, their sum at most 127). Uniform with b bits:
            -(2^(b-1) - 1) to 2^(b-1) - 1.
        scale: float32 [rows], above 0 and finite. A row of zeros has scale 1; binary codes have no zero, and such a
            row gets the smallest scale, 2^-100.
    """

    codes: np.ndarray
    scale: np.ndarray

    def decoded(self) -> np.ndarray:
        """The weights, float32 [rows, n]: float32(code) * scale, as onnxruntime computes it."""
        return np.asarray(self.codes.astype(np.float32) * self.scale[:, None], np.float32)
