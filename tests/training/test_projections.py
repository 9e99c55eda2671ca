"""Weights of few bits in training: what the layer computes with, what moves, and that the file has the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.methods import encode
from compressor.training.projections import Bases, Projection, projection
from tests.conftest import drawn

METHODS = [
    "twn",
    "optimal",
    "ttq",
    "xnor",
    "residual 1",
    "residual 2",
    "residual 3",
    "uniform 2",
    "uniform 3",
    "uniform 4",
]


def made(text: str, rows: np.ndarray, learn: bool = False, axis: int = 0) -> Projection:
    method = Method.parse(text)
    return projection(axis, method, encode(rows, method), learn)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("text", METHODS)
def test_training_begins_with_the_codes_of_the_pass(text: str, learn: bool) -> None:
    rows = drawn(6, 40)
    expected = encode(rows, Method.parse(text))
    found = made(text, rows, learn).encoded(torch.from_numpy(rows))
    assert (found.codes != expected.codes).mean() < 0.01
    assert np.allclose(found.scale, expected.scale, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("text", METHODS)
def test_the_layer_computes_with_the_decoded_codes_to_the_bit(text: str, axis: int) -> None:
    latent = drawn(6, 5, 8)
    rows = np.moveaxis(latent, axis, 0).reshape(latent.shape[axis], -1)
    part = made(text, rows, True, axis)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    moved = torch.from_numpy(latent + drawn(*latent.shape, seed=5) * 0.2)
    projected = np.moveaxis(part(moved).detach().numpy(), axis, 0).reshape(rows.shape)
    assert np.array_equal(projected, part.encoded(moved).decoded())


@pytest.mark.parametrize("text", METHODS)
def test_codes_keep_to_eight_bits_and_to_as_many_levels_as_the_method_has(text: str) -> None:
    rows = drawn(4, 400)
    part = made(text, rows, True)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    codes = part.encoded(torch.from_numpy(rows)).codes
    assert np.abs(codes.astype(int)).max() <= 127
    assert max(len(np.unique(row)) for row in codes) <= Method.parse(text).levels


@pytest.mark.parametrize("text", METHODS)
def test_the_gradient_reaches_every_latent_weight_unchanged(text: str) -> None:
    rows = drawn(6, 40)
    latent, wanted = torch.from_numpy(rows).requires_grad_(), torch.from_numpy(drawn(6, 40, seed=3))
    (made(text, rows)(latent) * wanted).sum().backward()
    assert latent.grad is not None
    assert torch.allclose(latent.grad, wanted)


@pytest.mark.parametrize("text", ["ttq", "residual 2", "uniform 3", "optimal", "xnor"])
def test_scales_that_are_too_large_are_trained_back(text: str) -> None:
    rows = drawn(3, 64)
    part, latent = made(text, rows, True), torch.from_numpy(rows)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.02)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.fill_(0.4)
    before = (part(latent) - latent).square().sum()
    for _ in range(100):
        optimizer.zero_grad()
        (part(latent) - latent).square().sum().backward()
        optimizer.step()
    assert (part(latent) - latent).square().sum() < 0.9 * before


@pytest.mark.parametrize("text", METHODS)
def test_rows_of_zeros_stay_finite(text: str) -> None:
    rows = drawn(3, 16)
    rows[1] = 0
    found = made(text, rows, True).encoded(torch.from_numpy(rows))
    assert np.isfinite(found.scale).all()
    assert np.abs(found.decoded()[1]).max() < 1e-20


def test_bases_are_read_off_their_sums() -> None:
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    codes = (signs @ np.array([90, 37])).astype(np.int8)[None]
    part = Bases(0, Codes(codes, np.array([0.01], np.float32)), 2)
    assert np.allclose(part.get_buffer("start").numpy(), [[0.9, 0.37]])


def test_a_share_lies_between_the_latent_weight_and_its_codes() -> None:
    rows = drawn(3, 8)
    part, latent = made("twn", rows), torch.from_numpy(rows)
    whole = part(latent)
    part.share = 0.25
    assert torch.allclose(part(latent), 0.25 * whole + 0.75 * latent)


def test_weights_of_which_some_are_coded_move_only_where_they_are_not() -> None:
    rows = drawn(3, 8)
    part, latent = made("twn", rows), torch.from_numpy(rows).requires_grad_()
    part.share = torch.from_numpy(np.abs(rows) > 0.5)
    out = part(latent)
    out.sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad == 0, part.share)
    assert torch.equal(out[~part.share], latent[~part.share])
