"""ONNX's own backend node tests, each lowered to torch and run; what fails is listed with its reason.

Our conformance suite: a listed case that passes fails the suite too, so the list stays true.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase as NodeCase

from compressor.torch_graph import to_torch
from compressor.torch_graph.values import to_array, to_value

LISTED = Path(__file__).with_name("conformance_failures.txt")
GOAL = 1720
"""Cases that have to pass, of the 1,884 of onnx 1.23."""


def _failures() -> dict[str, str]:
    lines = [line for line in LISTED.read_text().splitlines() if line and not line.startswith("#")]
    return {name: reason.strip() for name, _, reason in (line.partition(":") for line in lines)}


def _cases() -> dict[str, NodeCase]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases compute what they expect, overflow included
        return {case.name: case for case in collect_testcases(None)}


FAILURES = _failures()
CASES = _cases()


def _expected(name: str) -> Any:
    reason = FAILURES.get(name)
    if reason is None:
        return name
    # The last bit is another one on another processor: such a case may pass.
    return pytest.param(
        name, marks=pytest.mark.xfail(strict=not reason.startswith("rounding"), reason=reason)
    )


@pytest.mark.parametrize("name", [_expected(name) for name in CASES])
def test_the_node_case_gives_what_onnx_says(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)  # a random operator fails the same way each time
    module = to_torch(ir.from_proto(case.model))
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            found = module(*(to_value(_array(value)) for value in inputs))
        found = found if isinstance(found, tuple) else (found,)
        assert len(found) == len(outputs)
        for ours, wanted in zip(found, outputs, strict=True):
            _assert_same(to_array(ours), _array(wanted), case)


def test_enough_node_cases_pass() -> None:
    assert len(CASES) - len(FAILURES) >= GOAL


def test_every_listed_failure_is_a_case_and_says_why() -> None:
    assert set(FAILURES) <= set(CASES)
    assert all(len(reason) > 10 for reason in FAILURES.values())


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _assert_same(ours: Any, wanted: Any, case: NodeCase) -> None:
    """Equal types and shapes, values within the case's own tolerances; sequences item by item."""
    if isinstance(wanted, list):
        assert len(ours) == len(wanted)
        for mine, other in zip(ours, wanted, strict=True):
            _assert_same(mine, _array(other), case)
        return
    if wanted is None:
        assert ours is None
        return
    ours = np.asarray(ours)
    assert ours.dtype == wanted.dtype
    assert ours.shape == wanted.shape
    if wanted.dtype.kind == "O":
        assert (ours == wanted).all()
        return
    if wanted.dtype.kind not in "biufc":
        ours, wanted = ours.astype(np.float32), wanted.astype(np.float32)
    np.testing.assert_allclose(ours, wanted, rtol=case.rtol, atol=case.atol)
