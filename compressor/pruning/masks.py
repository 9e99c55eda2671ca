"""Which weights stay: masks by pattern from scores.

Scores are importances, not negative; the lowest go first. They come in the view of a `Layout`: [rows, positions, run],
where a row is all that one output reads and `run` is the axis of the inputs, along which n:m groups and blocks lie.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import numpy as np

from compressor.errors import OptionError


@dataclass(frozen=True)
class Pattern:
    """Which weights go together: single ones, all but `keep` of each `of`, or blocks.

    Args:
        text: 'element', 'block', or 'n:m'.
        rows: outputs in a block.
        columns: inputs in a block.
        keep: n of n:m; 0 for other patterns.
        of: m of n:m; 0 for other patterns.
    """

    text: str = "element"
    rows: int = 1
    columns: int = 1
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str, block: tuple[int, int] = (1, 1)) -> Pattern:
        """The pattern of a name; `block` is (outputs, inputs) of a block, and only read for 'block'.

        >>> Pattern.parse("2:4").limit, Pattern.parse("element").limit
        (0.5, 1.0)
        """
        if text == "element":
            return cls()
        if text == "block":
            return cls(text, *block)
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None or not 0 < int(found[1]) < int(found[2]):
            raise OptionError(
                f"pattern must be 'element', 'block', or n:m with 0 < n < m such as '2:4', got {text!r}."
            )
        return cls(text, 1, 1, int(found[1]), int(found[2]))

    @property
    def limit(self) -> float:
        """The highest sparsity: 1 - n/m, or 1."""
        return 1 - self.keep / self.of if self.of else 1.0


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as [rows, positions, run].

    Args:
        shape: the weight's shape, its group axis split off where its outputs are spread over groups.
        axes: their order in the view: axes of the outputs, then of kernel positions, then that of the inputs.
        outputs: how many of them count outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    outputs: int = 1

    def view(self, array: np.ndarray) -> np.ndarray:
        """The weight, or anything of its shape, as [rows, positions, run].

        >>> Layout((8, 3, 5, 5), (0, 2, 3, 1)).view(np.zeros((8, 3, 5, 5))).shape
        (8, 25, 3)
        """
        turned = array.reshape(self.shape).transpose(self.axes)
        return turned.reshape(prod(turned.shape[: self.outputs]), -1, turned.shape[-1])

    def restored(self, view: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `view`: an array of the weight's own shape."""
        turned = view.reshape([self.shape[axis] for axis in self.axes])
        return turned.transpose(np.argsort(self.axes)).reshape(shape)


def keeps(scores: np.ndarray, sparsity: float, pattern: Pattern, by_row: bool = False) -> np.ndarray:
    """True for the weights that stay: bool [rows, positions, run].

    The share that goes is the nearest that the pattern can give to `sparsity`; ties go in order of position. At least
    one weight, or block, stays.

    Args:
        scores: importances [rows, positions, run]; weights that are zero already should have the lowest.
        sparsity: the share to take away, in [0, 1); above `pattern.limit` it is that.
        pattern: which weights go together. For n:m, run must be a multiple of m.
        by_row: compare only within a row (for blocks: a row of blocks), and take the same share from each.

    >>> keeps(np.array([[[4.0, 1.0, 3.0, 2.0]]]), 0.5, Pattern())
    array([[[ True, False,  True, False]]])
    """
    if pattern.text == "block":
        units, sizes = _blocks(scores, pattern)
        gone = _lowest_in_rows(units, sizes, sparsity) if by_row else _lowest_of(units, sizes, sparsity)
        spread = gone.repeat(pattern.rows, axis=0).repeat(pattern.columns, axis=2)
        return ~spread[: scores.shape[0], :, : scores.shape[2]]
    if pattern.of:
        scores = np.where(_spared(scores, pattern), np.inf, scores)
        sparsity = min(sparsity, pattern.limit)
    gone = _lowest_in_rows(scores, None, sparsity) if by_row else _lowest_of(scores, None, sparsity)
    return ~gone


def units(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """The scores of what goes together: of blocks their mean weight's, otherwise `scores` themselves."""
    return _blocks(scores, pattern)[0] if pattern.text == "block" else scores


def _blocks(scores: np.ndarray, pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """Mean score and number of weights of each block; blocks at an edge may be smaller."""
    rows, _, run = scores.shape
    starts = np.arange(0, rows, pattern.rows), np.arange(0, run, pattern.columns)
    sums = np.add.reduceat(np.add.reduceat(scores, starts[0], axis=0), starts[1], axis=2)
    high, wide = (np.diff(np.append(start, end)) for start, end in zip(starts, (rows, run), strict=True))
    sizes = np.broadcast_to(high[:, None, None] * wide, sums.shape)
    return sums / sizes, sizes


def _spared(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """True for the `keep` highest of each `of` neighbours; of equal ones the last."""
    grouped = scores.reshape(-1, pattern.of)
    rank = np.argsort(np.argsort(grouped, axis=1, kind="stable"), axis=1)
    spared: np.ndarray = (rank >= pattern.of - pattern.keep).reshape(scores.shape)
    return spared


def _lowest_in_rows(scores: np.ndarray, sizes: np.ndarray | None, sparsity: float) -> np.ndarray:
    """`_lowest` for each row; what rounding leaves over is carried on to the next row."""
    gone = np.zeros(scores.shape, bool)
    due, taken = 0.0, 0
    for row, values in enumerate(scores):
        each = None if sizes is None else sizes[row]
        due += sparsity * (values.size if each is None else int(each.sum()))
        gone[row] = _lowest(values.reshape(-1), each, round(due - taken)).reshape(values.shape)
        taken += int(gone[row].sum()) if each is None else int(each[gone[row]].sum())
    return gone


def _lowest_of(scores: np.ndarray, sizes: np.ndarray | None, sparsity: float) -> np.ndarray:
    count = round(sparsity * (scores.size if sizes is None else int(sizes.sum())))
    return _lowest(scores.reshape(-1), sizes, count).reshape(scores.shape)


def _lowest(scores: np.ndarray, sizes: np.ndarray | None, count: int) -> np.ndarray:
    """True for the lowest scores [n] that hold `count` weights together, or nearly; never for all."""
    gone = np.zeros(len(scores), bool)
    if sizes is not None:
        order = np.argsort(scores, kind="stable")[:-1]
        held = np.cumsum(sizes.reshape(-1)[order])
        some = int(np.argmin(np.abs(np.append(0, held) - count)))
        gone[order[:some]] = True
        return gone
    count = min(count, len(scores) - 1)
    if count <= 0:
        return gone
    limit = np.partition(scores, count - 1)[count - 1]
    gone |= scores < limit
    gone[np.flatnonzero(scores == limit)[: count - int(gone.sum())]] = True
    return gone
