"""Networks as torch exports them lose heads, widths and hidden units, and compute what the masked network does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from compressor.channels import find
from compressor.model_io import load
from compressor.prepare import prepare
from tests.channels.law import broken
from tests.channels.networks import NETWORKS, exported, feeds

SAMPLES = Path(__file__).parents[2] / "sample_models"

EXACT = {
    "llama": [2, 2, 4, 8, 20],
    "llama, merged": [2, 2, 4, 8, 20],
    "vision": [4, 4, 24],
    "windows": [2, 4, 16],
    "convnext": [16],
    "bert": [4, 4, 10, 24],
    "tied": [8, 12],
    "lstm": [5, 6],
    "gru": [5, 6],
    "excited": [4, 4],
}
"""Sizes of the groups that are cut exactly. Llama: heads that share a key, shares, rotated pairs, values, MLP."""
NORMALIZED = {"vision": [16], "convnext": [8], "bert": [16], "excited": [2]}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_is_found_and_cutting_it_equals_masking_it(name):
    model = prepare(ir.from_proto(exported(name))).model
    found = find(model.clone())
    assert dict(found.barriers) == {}
    assert sorted(group.size for group in found.groups if not group.normalized) == EXACT[name]
    assert [group.size for group in found.groups if group.normalized] == NORMALIZED.get(name, [])
    assert broken(model, feeds(name), trials=1) == []


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("digits_transformer", {4: 3, 24: 6, 192: 3}), ("digits_lstm", {128: 1})],
)
def test_sample_models_lose_heads_widths_and_units_of_every_layer(name, sizes):
    model = prepare(load(SAMPLES / f"{name}.onnx")).model
    found = find(model.clone())
    exact = [group.size for group in found.groups if not group.normalized]
    assert Counter(exact) == sizes
    assert set(found.declined) == {"head.weight"}
