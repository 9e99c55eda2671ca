"""The batch size and the rate that are found by trying."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from compressor.data import open_samples
from compressor.torch_graph import to_torch
from compressor.training import probing
from compressor.training.loading import open_source
from tests.conftest import drawn
from tests.training.trained import cnn, images, made, mlp, points, train, values

CPU = torch.device("cpu")


def largest(count: int, free: float, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(probing, "_free", lambda device: free)
    source = open_source(open_samples(points(count), mlp()))
    return probing.largest_batch(to_torch(mlp()), source, CPU)


def test_memory_decides_up_to_half_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [largest(200, free, monkeypatch) for free in (0, 1e3, 1e4, 1e9)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, 64)
    assert len(set(sizes)) > 2


def test_no_batch_is_larger_than_1024(monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest(5000, 1e12, monkeypatch) == 1024


def test_a_batch_that_the_model_fixes_is_taken() -> None:
    model = made("g (float[2,4] x) => (float[2,3] y) { y = MatMul(x, w) }", w=drawn(4, 3))
    source = open_source(open_samples({"x": drawn(8, 4)}, model))
    assert probing.largest_batch(to_torch(model), source, CPU) == 2


def test_trying_rates_leaves_no_trace_in_weights_and_statistics() -> None:
    class Note(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            state = pl_module.network.state_dict()
            self.start = {name: state[name].numpy().copy() for name in values(cnn())}

    note = Note()
    train(cnn(), images(96), "batch=48 lr=auto epochs=1 optimizer=adamw", callbacks=[note])
    assert all(np.array_equal(array, values(cnn())[name]) for name, array in note.start.items())
