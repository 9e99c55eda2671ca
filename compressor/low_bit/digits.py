"""Codes as digits of words: in bytes or pairs of bytes, with levels for all or for each row, whichever takes less."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from compressor.packing import codes_per_byte

MOST_LEVELS = 40
"""Three codes of so many levels fit into two bytes, 5.3 bits each."""
PIECE_BYTES = 50
"""What the nodes and names of one tensor take in the file (measured)."""
TABLE_BYTES = 90
"""What levels of each row take more, without the levels (measured)."""


class Packing(NamedTuple):
    """Codes as digits.

    Args:
        digits: uint8 [n], each an index into `levels`.
        levels: what the digits stand for, rising; with `rows` their own numbers.
        rows: [rows, levels] of the codes' type, the levels of each row of codes; None where all rows share them.
    """

    digits: np.ndarray
    levels: tuple[int, ...]
    rows: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """What it takes in the file, the nodes that all tensors share not counted."""
        own = 0 if self.rows is None else self.rows.nbytes + TABLE_BYTES
        return int(self.digits.size * bits(len(self.levels)) / 8) + PIECE_BYTES + own


def word(levels: int) -> type[np.unsignedinteger]:
    """The word that holds codes of `levels` values in the fewest bits, a byte where two bytes are no better.

    >>> [word(levels).__name__ for levels in (2, 3, 4, 5, 7, 8, 15, 16, 40)]
    ['uint8', 'uint8', 'uint8', 'uint8', 'uint16', 'uint16', 'uint8', 'uint8', 'uint16']
    """
    return np.uint8 if 2 * codes_per_byte(levels) >= codes_per_byte(levels, 2**16) else np.uint16


def bits(levels: int) -> float:
    """Bits of a packed code.

    >>> [round(bits(levels), 2) for levels in (2, 3, 4, 7, 8, 15)]
    [1.0, 1.6, 2.0, 3.2, 3.2, 4.0]
    """
    info = np.iinfo(word(levels))
    return info.bits / codes_per_byte(levels, int(info.max) + 1)


def packing(codes: np.ndarray, axis: int) -> Packing | None:
    """The digits that hold the codes in the fewest bytes; None where that is no less than the codes themselves.

    Args:
        codes: int8 or uint8 of any shape.
        axis: of the rows, which may each have their own levels.
    """
    if not codes.size:
        return None
    found = [made for made in (_alike(codes), _by_rows(codes, axis)) if made is not None]
    best = min(found, key=lambda made: made.nbytes, default=None)
    return best if best is not None and best.nbytes < codes.nbytes else None


def _alike(codes: np.ndarray) -> Packing | None:
    """With one set of levels."""
    levels, digits = np.unique(codes, return_inverse=True)
    if len(levels) > MOST_LEVELS:
        return None
    if len(levels) == 1:  # a base of one has no digits
        levels = np.append(levels, levels[0] ^ 1)
    return Packing(digits.reshape(-1).astype(np.uint8), tuple(levels.tolist()))


def _by_rows(codes: np.ndarray, axis: int) -> Packing | None:
    """With the levels of each row; digits in the order in which they are stored, see `blobs`."""
    moved = np.moveaxis(codes, axis, 0)
    rows = moved.reshape(len(moved), -1)
    least = int(np.iinfo(codes.dtype).min)
    numbers = rows.astype(np.int64) - least
    present = np.zeros((len(rows), 256), bool)
    present[np.arange(len(rows))[:, None], numbers] = True
    counts = present.sum(1)
    most = int(counts.max())
    if not 2 <= most <= MOST_LEVELS:
        return None
    ranks = np.cumsum(present, axis=1) - 1
    digits = np.take_along_axis(ranks, numbers, axis=1)
    ordered = np.sort(np.where(present, np.arange(256), 256), axis=1)[:, :most]
    highest = ordered[np.arange(len(rows)), counts - 1][:, None]
    levels = (np.minimum(ordered, highest) + least).astype(codes.dtype)
    if is_second_of_two(codes.shape, axis):
        digits = digits.T
    return Packing(digits.reshape(-1).astype(np.uint8), tuple(range(most)), levels)


def is_second_of_two(shape: tuple[int, ...], axis: int) -> bool:
    """Whether the rows of a matrix are its columns; their digits are then stored as the codes are, not by rows."""
    return len(shape) == 2 and axis % 2 == 1
