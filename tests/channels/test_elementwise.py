from __future__ import annotations

import numpy as np
import pytest

from tests.channels.law import assert_law, groups, reasons
from tests.channels.middles import before_linear, between, ints
from tests.conftest import build, drawn

KEEP_ZERO = (
    *(
        "Abs",
        "Neg",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "ThresholdedRelu",
        "Softsign",
        "Identity",
        "Tanh",
    ),
    *(
        "Sin",
        "Tan",
        "Atan",
        "Sinh",
        "Asinh",
        "Erf",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Mish",
        "HardSwish",
        "Shrink",
    ),
)
LOSE_ZERO = ("Sigmoid", "HardSigmoid", "Exp", "Cos", "Cosh", "Softplus")


def summed(body: str, opset: int = 18, **more: np.ndarray) -> object:
    """A sum over channels of `f`, what the body makes of `h`."""
    tail = "s = ReduceSum <keepdims = 0> (f, ax) t = Flatten(s) g = MatMul(t, v)"
    return before_linear(f"{body} {tail}", 4, opset, ax=ints(1), v=drawn(36, 4, seed=9), **more)


@pytest.mark.parametrize("op", KEEP_ZERO)
def test_a_function_that_keeps_zero_may_be_summed(op: str) -> None:
    proto = summed(f"f = {op}(h)")
    assert "wa" in groups(proto)
    assert_law(proto, trials=1)


@pytest.mark.parametrize("op", LOSE_ZERO)
def test_a_function_that_moves_zero_may_be_read_by_weights_only(op: str) -> None:
    assert_law(between(f"g = {op}(h)"), trials=1)
    assert reasons(summed(f"f = {op}(h)"))["wa"] == "ReduceSum 'ReduceSum_2' runs over it"


SCALARS = {
    name: np.array(number, np.float32)
    for name, number in {"minus": -1, "none": 0, "half": 0.5, "two": 2}.items()
}
BOUNDED = {
    "Clip around zero": ("f = Clip(h, minus, two)", True),
    "Clip from zero": ("f = Clip(h, none, two)", True),
    "Clip without bounds": ("f = Clip(h)", True),
    "Clip below two": ("f = Clip(h, , two)", True),
    "Clip above one half": ("f = Clip(h, half)", False),
    "a square": ("f = Pow(h, two)", True),
    "a power of the exponent": ("f = Pow(two, h)", False),
    "an inverse": ("a = Abs(h) b = Add(a, half) f = Pow(b, minus)", False),
    "a sum with one half": ("f = Add(h, half)", False),
    "a sum with zero": ("f = Add(h, none)", True),
    "a product with one half": ("f = Mul(half, h)", True),
    "a product of two": ("e = Sigmoid(h) f = Mul(e, h)", True),
    "divided by two": ("f = Div(h, two)", True),
    "the larger of it and one half": ("f = Max(h, half)", False),
    "the mean of it and itself": ("r = Relu(h) f = Mean(h, r)", True),
    "where it is positive": ("c = Greater(h, none) f = Where(c, h, none)", True),
    "where it is positive, else one half": ("c = Greater(h, none) f = Where(c, h, half)", False),
    "not a number nowhere": ("c = IsNaN(h) n = Not(c) f = Cast <to = 1> (n)", False),
    "PRelu": ("f = PRelu(h, slope)", True),
    "Dropout": ("f, m = Dropout(h)", True),
    "kept by Dropout": ("d, m = Dropout(h) f = Cast <to = 1> (m)", False),
    "both positive": ("c = Greater(h, none) e = And(c, c) f = Cast <to = 1> (e)", False),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_keeps_zero_may_be_summed_and_what_does_not_is_declined(name: str) -> None:
    body, keeps = BOUNDED[name]
    proto = summed(body, slope=drawn(8, 1, 1, seed=4), **SCALARS)
    assert ("wa" in groups(proto)) == keeps
    if keeps:
        assert_law(proto, trials=1)


def test_an_old_clip_keeps_its_bounds_in_attributes() -> None:
    text = "f = Clip <min = {}, max = 6.0> (h)"
    assert "wa" in groups(summed(text.format("0.0"), 10))
    assert "wa" not in groups(summed(text.format("0.5"), 10))


STRETCHED = {
    "a scale per channel": ("g = Mul(h, c)", 8),
    "a scale per image": ("g = Mul(h, n)", 8),
    "a plane": ("g = Add(h, p)", 8),
    "a squeezed map": ("s = GlobalAveragePool(h) e = Sigmoid(s) g = Mul(e, h)", 8),
    "one channel over all": ("k = Conv(x, w1) g = Mul(k, h)", 8),
    "the other is one channel": ("k = Conv(x, w1) g = Add(h, k)", 8),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_operands_are_broadcast_as_numpy_does(name: str) -> None:
    body, size = STRETCHED[name]
    proto = between(body, c=drawn(8, 1, 1), n=drawn(1, 1, 1, 1), p=drawn(6, 6), w1=drawn(1, 3, 1, 1))
    assert groups(proto) == {"wa": size}
    assert_law(proto)


def test_squeeze_and_excitation_is_cut_inside_and_outside() -> None:
    body = """s = GlobalAveragePool(h) d = Conv(s, wd, bd) r = Relu(d) u = Conv(r, wu, bu) e = Sigmoid(u)
        g = Mul(h, e)"""
    weights = {"wd": drawn(4, 8, 1, 1), "bd": drawn(4), "wu": drawn(8, 4, 1, 1), "bu": drawn(8)}
    proto = between(body, **weights)
    assert groups(proto) == {"wa": 8, "wd": 4}
    assert_law(proto)


def test_a_residual_sum_ties_the_channels_of_its_branches() -> None:
    body = "k = Conv(h, wk, bk) r = Relu(k) a = Add(h, r) l = Conv(a, wl) g = Sum(a, l, h)"
    proto = between(body, wk=drawn(8, 8, 1, 1), bk=drawn(8), wl=drawn(8, 8, 1, 1, seed=3))
    assert groups(proto) == {"wa": 8}
    assert_law(proto)


def test_a_branch_from_outside_forbids_the_cut() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 3, 6, 6] x, float[N, 8, 6, 6] z) => (float[N, 2, 6, 6] y) {
      h = Conv(x, wa) a = Add(h, z) y = Conv(a, wz)
    }"""
    told = reasons(build(text, wa=drawn(8, 3, 1, 1), wz=drawn(2, 8, 1, 1)))
    assert told["wa"] == "'z' comes from outside the graph"
