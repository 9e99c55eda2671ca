"""How much each weight matters: scores in the view [rows, positions, run] of its layout, not negative."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor.errors import OptionError
from compressor.pipeline import Context
from compressor.pruning.layer_inputs import refusal, square_norms
from compressor.pruning.prunable import Weight

if TYPE_CHECKING:
    from compressor.data import Samples


def magnitude(view: np.ndarray) -> np.ndarray:
    """|w| (Han et al. 2015, arXiv:1506.02626)."""
    return np.asarray(np.abs(view), np.float32)


def wanda(view: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """|w| times the norm of the input that it multiplies (Sun et al. 2023, arXiv:2306.11695, eq. 1).

    Args:
        view: the weight as [rows, positions, run].
        squares: mean squares of the inputs, [groups, K], as `layer_inputs` counts K; rows are spread over the groups.
    """
    rows, positions, run = view.shape
    norms = np.sqrt(squares).reshape(-1, run, positions).transpose(0, 2, 1)
    return np.asarray(np.abs(view) * norms.repeat(rows // len(norms), axis=0), np.float32)


def watched_uses(model: ir.Model, weight: Weight) -> list[ir.Node]:
    """The layers of a weight whose inputs can be watched."""
    return [use.node for use in weight.uses if refusal(model, use.node, use.idx) is None]


def wanda_scores(
    model: ir.Model, weights: Mapping[str, Weight], samples: Samples, threads: int
) -> dict[str, np.ndarray]:
    """Name -> `wanda` of each weight; `magnitude` of one whose inputs cannot be watched."""
    uses = {name: watched_uses(model, weight) for name, weight in weights.items()}
    squares = square_norms(model, [node for nodes in uses.values() for node in nodes], samples, threads)
    found: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        seen = [squares[node] for node in uses[name]]
        found[name] = wanda(weight.view, np.sum(seen, axis=0)) if seen else magnitude(weight.view)
    return found


def unwatched(model: ir.Model, weights: Mapping[str, Weight]) -> list[str]:
    """The weights of which nothing is known but their magnitude: no value of the graph holds what they multiply."""
    return [name for name, weight in weights.items() if not watched_uses(model, weight)]


def require_torch() -> None:
    """Refuse to take gradients without torch."""
    if find_spec("torch") is None:
        raise OptionError(
            "importance='taylor' needs torch, which is not installed: pip install onnx-compressor[train]"
        )


def taylor_scores(
    model: ir.Model, weights: Mapping[str, Weight], samples: Samples, context: Context
) -> dict[str, np.ndarray]:
    """Name -> the mean of (w g)^2 over samples, g the gradient of the loss (Molchanov et al. 2019, arXiv:1906.10771,
    eq. 8).

    Raises:
        OptionError: torch, which takes the gradients, is not installed.
    """
    require_torch()
    from compressor.training.saliency import saliency

    found = saliency(model, samples, list(weights), context)
    return {name: weight.layout.view(found[name].taylor) for name, weight in weights.items()}
