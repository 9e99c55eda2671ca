"""The picture of a sensitivity: a field per layer and level, the darker the more the score drops."""

from __future__ import annotations

from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.atomic import publish, staging
from compressor.errors import OptionError
from compressor.layer_sensitivity import Sensitivity
from compressor.layer_variants import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = (".png", ".svg")
_TITLES: dict[Kind, str] = {
    "sparsity": "share of zeros",
    "channels": "share of channels cut",
    "bits": "bits per weight",
}
_NUMBERED = 80
"""With more layers than this the numbers in the fields are left out."""


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, what cannot be drawn.

    Raises:
        OptionError: another ending than .png or .svg, no such folder, or matplotlib is missing.
    """
    if path.suffix.lower() not in _FORMATS:
        raise OptionError(f"A plot is a .png or .svg file, got {str(path)!r}.")
    if not path.resolve().parent.is_dir():
        raise OptionError(f"The folder of the plot {str(path)!r} does not exist.")
    if find_spec("matplotlib") is None:
        raise OptionError(
            "A plot needs matplotlib, which is not installed: pip install onnx-compressor[plot]"
        )


def plot(found: Sensitivity, path: Path) -> None:
    """Write the picture, atomically: a panel per kind, layers from top to bottom, levels from left to right.

    Raises:
        OptionError: see `check_plot`.
        ModelError: the disk is full, or the folder cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    layers, kinds = list(found.layers), found.kinds()
    widths = [len(found.levels(kind)) for kind in kinds]
    longest = max(len(name) for name in layers)
    size = (0.085 * longest + 0.75 * sum(widths) + 1.4, 0.24 * len(layers) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=widths)[0]
    grids = {kind: _grid(found, kind) for kind in kinds}
    known = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    top = max(float(known.max(initial=0.0)), 1e-9)
    for panel, kind in zip(panels, kinds, strict=True):
        _draw(panel, grids[kind], top, found.levels(kind))
        panel.set_xlabel(_TITLES[kind])
    panels[0].set_yticks(range(len(layers)), layers, fontsize=7)
    figure.suptitle(f"Drop of {found.metric} on {found.samples} samples, one layer at a time", fontsize=9)
    path = path.resolve()
    with staging(path) as folder:
        figure.savefig(folder / path.name, dpi=120)
        publish(folder, [path.name], path)


def _grid(found: Sensitivity, kind: Kind) -> np.ndarray:
    """Drops [layers, levels]; NaN where nothing was measured, or nothing finite."""
    levels = found.levels(kind)
    curves = [kinds.get(kind, {}) for kinds in found.layers.values()]
    values = [[curve[level].value if level in curve else np.nan for level in levels] for curve in curves]
    return np.array([[value if isfinite(value) else np.nan for value in row] for row in values])


def _draw(panel: Axes, grid: np.ndarray, top: float, levels: tuple[float, ...]) -> None:
    panel.imshow(grid, aspect="auto", cmap="Reds", vmin=0, vmax=top)
    panel.set_xticks(range(len(levels)), [f"{level:g}" for level in levels], fontsize=7)
    panel.tick_params(length=0)
    if len(grid) > _NUMBERED:
        return
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            dark = value > 0.6 * top
            panel.text(
                column, row, f"{value:.3f}", ha="center", va="center", fontsize=6, color="w" if dark else "k"
            )
