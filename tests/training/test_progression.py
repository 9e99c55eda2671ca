"""Codes that come into force on the way: what has them when, and that all have them in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl
import torch

from compressor.low_bit.coded_weights import coded_weights
from compressor.pipeline import Context, Pipeline
from compressor.training.progression import largest
from compressor.training.projections import projections
from tests.training.trained import mlp, points, train

COUNT = 24
"""Samples; with batches of 8 and four epochs there are 12 steps."""


def coded(model: ir.Model | None = None) -> ir.Model:
    """The MLP with ternary weights."""
    recipe = "quantize-ternary{activations=float keep_first_last=False min_elements=1}"
    return Pipeline.parse(recipe).run(mlp() if model is None else model, Context()).model


class Watching(pl.Callback):
    """How much of each projection is in force after every step."""

    def __init__(self) -> None:
        self.shares: list[list[float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Take it down; the user's callbacks come after ours."""
        shares = [part.share for part, _ in projections(pl_module.network).values()]
        self.shares.append([float(torch.as_tensor(share).float().mean()) for share in shares])


def watched(options: str) -> tuple[list[list[float]], dict[str, Any]]:
    seen = Watching()
    result = train(coded(), points(COUNT), f"epochs=4 {options}", callbacks=[seen])
    (figures,) = [c.figures for c in result.changes if "best epoch" in c.figures]
    return seen.shares, dict(figures)


@pytest.mark.parametrize("progressive", ["none", "layers", "fraction", "anneal"])
def test_in_the_end_every_weight_has_its_codes(progressive: str) -> None:
    shares, _ = watched(f"progressive={progressive}")
    assert shares[-1] == [1.0, 1.0]


def test_layers_get_their_codes_one_after_another() -> None:
    shares, _ = watched("progressive=layers progressive_steps=2 progressive_end=0.5")
    assert [sum(step) for step in shares] == [0] * 2 + [1] * 3 + [2] * 7


def test_the_largest_weights_of_each_layer_get_their_codes_first() -> None:
    shares, _ = watched("progressive=fraction progressive_steps=3 progressive_end=1")
    halves = [0.5] * 3 + [0.75] * 4 + [0.875] * 4 + [1]
    assert np.allclose([step[0] for step in shares], halves, atol=0.02)


def test_annealing_moves_every_weight_in_a_straight_line() -> None:
    shares, _ = watched("progressive=anneal progressive_end=1")
    assert np.allclose([step[0] for step in shares], np.arange(1, 13) / 12)


def test_no_epoch_before_the_last_codes_is_the_best() -> None:
    _, figures = watched("progressive=anneal progressive_end=0.75 keep=best lr=1e-9")
    assert figures["best epoch"] in (0, 3, 4)


def test_weights_that_are_held_stay_among_the_largest() -> None:
    held = torch.tensor([[False, True, False, False]])
    chosen = largest(torch.tensor([[3.0, 0.1, 2.0, -4.0]]), 0.5, held)
    assert chosen.tolist() == [[False, True, False, True]]


def test_a_training_taken_up_on_the_way_ends_with_the_same_codes(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    options = "epochs=4 progressive=fraction progressive_end=0.9"
    whole = train(coded(), points(COUNT), options, workspace=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(coded(), points(COUNT), options, workspace=tmp_path / "half", callbacks=[Stop()])
    resumed = train(coded(), points(COUNT), options, workspace=tmp_path / "half", resume=True)
    for one, other in zip(coded_weights(whole.model), coded_weights(resumed.model), strict=True):
        assert np.array_equal(one.rows().codes, other.rows().codes)
        assert np.array_equal(one.rows().scale, other.rows().scale)
