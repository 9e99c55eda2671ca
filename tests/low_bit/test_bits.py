from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import OptionError
from compressor.low_bit.bits import curves, measured_bits, share_out
from compressor.low_bit.codes import Method

TERNARY = Method("twn")


@pytest.mark.parametrize(
    ("curve", "chosen"),
    [
        ({8: 0.0, 4: 0.0, 2: 0.0, 1: 0.9}, TERNARY),
        ({8: 0.0, 4: 0.0, 2: 0.5}, Method("uniform", 4)),
        ({8: 0.0, 4: 0.0, 3: 0.0, 2: 0.5}, Method("uniform", 3)),
        ({8: 0.0, 4: 0.3, 2: 0.5}, Method("uniform", 8)),
        ({8: 0.2, 4: 0.3, 2: 0.5}, Method("uniform", 8)),
        ({8: 0.0, 1: 0.0}, TERNARY),
        ({8: 0.0, 2: float("inf")}, Method("uniform", 8)),
    ],
)
def test_a_layer_gets_the_fewest_bits_within_the_drop(curve: dict[float, float], chosen: Method) -> None:
    assert share_out({"w": curve}, ["w"], TERNARY, 0.01) == {"w": chosen}


def test_a_layer_that_one_bit_hurts_becomes_ternary() -> None:
    assert share_out({"w": {8: 0.0, 2: 0.0, 1: 0.4}}, ["w"], Method("xnor"), 0.01) == {"w": Method("optimal")}


def test_no_layer_gets_fewer_bits_than_were_asked_for() -> None:
    asked = Method("uniform", 4)
    assert share_out({"w": {8: 0.0, 4: 0.0, 2: 0.0}}, ["w"], asked, 0.01) == {"w": asked}
    assert measured_bits(asked) == 4


def write(folder: Path, layers: Any) -> str:
    file = folder / "sensitivity.json"
    file.write_text(json.dumps(layers))
    return str(file)


def test_curves_over_bits_are_read_and_null_is_infinite(tmp_path: Path) -> None:
    layers = {"a": {"bits": {"8": 0.0, "2": None}}, "b": {"sparsity": {"0.5": 0.1}}}
    assert curves(write(tmp_path, {"layers": layers})) == {"a": {8: 0.0, 2: float("inf")}}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"layers": {"a": {"sparsity": {"0.5": 0.1}}}}, "has no curve over bits.*--kind bits"),
        ({"layers": {"a": {"bits": {"16": 0.1}}}}, "has the drop 0.1 at 16 bits; bits are from 1 to 8"),
        ({"layers": {"a": {"bits": {"2": "nan"}}}}, "has the drop nan at 2 bits"),
        ({"layers": [1]}, "is not what `compress sensitivity` writes"),
        ({}, "is not what `compress sensitivity` writes"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, layers: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        curves(write(tmp_path, layers))


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match=r"there is no file 'none\.json'"):
        curves("none.json")
