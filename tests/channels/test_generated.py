"""The law on models that hypothesis puts together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.channels.law import broken, groups, plain
from tests.channels.middles import ints
from tests.conftest import build, drawn


class Sketch:
    """ONNX text that grows: maps of 6 x 6 with their channels, and the weights so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.maps: list[tuple[str, int]] = [("x", 4)]

    def name(self) -> str:
        return f"v{len(self.lines) + len(self.weights)}"

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def line(self, body: str) -> str:
        name = self.name()
        self.lines.append(f"{name} = {body}")
        return name


Step = Callable[[Sketch, str, int], tuple[str, int]]


def convolution(s: Sketch, at: str, width: int) -> tuple[str, int]:
    made = 12 - width if width in (4, 8) else 8
    w, b = (
        s.weight(drawn(made, width, 1, 1, seed=len(s.weights)) / 2),
        s.weight(drawn(made, seed=len(s.weights))),
    )
    return s.line(f"Conv({at}, {w}, {b})"), made


def depthwise(s: Sketch, at: str, width: int) -> tuple[str, int]:
    w = s.weight(drawn(width, 1, 3, 3, seed=len(s.weights)) / 2)
    return s.line(f"Conv <group = {width}, pads = [1, 1, 1, 1]> ({at}, {w})"), width


def grouped(s: Sketch, at: str, width: int) -> tuple[str, int]:
    w = s.weight(drawn(8, width // 2, 1, 1, seed=len(s.weights)) / 2)
    return s.line(f"Conv <group = 2> ({at}, {w})"), 8


def activation(s: Sketch, at: str, width: int) -> tuple[str, int]:
    return s.line(f"Sigmoid({at})"), width


def residual(s: Sketch, at: str, width: int) -> tuple[str, int]:
    other = next(name for name, channels in s.maps if channels == width)
    return s.line(f"Add({at}, {other})"), width


def excitation(s: Sketch, at: str, width: int) -> tuple[str, int]:
    return s.line(f"Mul({at}, {s.line(f'GlobalAveragePool({at})')})"), width


def dense(s: Sketch, at: str, width: int) -> tuple[str, int]:
    if width > 16:
        return convolution(s, at, width)
    return s.line(f"Concat <axis = 1> ({at}, {s.maps[-1][0]}, {at})"), 2 * width + s.maps[-1][1]


def shuffle(s: Sketch, at: str, width: int) -> tuple[str, int]:
    into, back = s.weight(ints(0, 2, width // 2, 6, 6)), s.weight(ints(0, width, 6, 6))
    turned = s.line(f"Transpose <perm = [0, 2, 1, 3, 4]> ({s.line(f'Reshape({at}, {into})')})")
    return s.line(f"Reshape({turned}, {back})"), width


def swapped(s: Sketch, at: str, width: int) -> tuple[str, int]:
    first, second = s.name() + "a", s.name() + "b"
    s.lines.append(f"{first}, {second} = Split <axis = 1> ({at}, {s.weight(ints(1, width - 1))})")
    return s.line(f"Concat <axis = 1> ({second}, {first})"), width


def gated(s: Sketch, at: str, width: int) -> tuple[str, int]:
    zero, half, all_, one = (s.weight(ints(n)) for n in (0, width // 2, width, 1))
    first = s.line(f"Slice({at}, {zero}, {half}, {one})")
    return s.line(f"Mul({first}, {s.line(f'Slice({at}, {half}, {all_}, {one})')})"), width // 2


def padded(s: Sketch, at: str, width: int) -> tuple[str, int]:
    return s.line(f"Pad({at}, {s.weight(ints(0, 1, 0, 0, 0, 1, 0, 0))})"), width + 2


STEPS: list[Step] = [convolution, depthwise, activation, residual, excitation, dense, swapped, padded]
EVEN: list[Step] = [grouped, shuffle, gated]


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """x [N, 4, 6, 6] -> convolution -> three to seven steps -> convolution -> y [N, 2, 6, 6]."""
    sketch = Sketch()
    at, width = convolution(sketch, "x", 4)
    for _ in range(draw(st.integers(3, 7))):
        sketch.maps.append((at, width))
        step = draw(st.sampled_from([*STEPS, *EVEN] if width % 2 == 0 and width > 2 else STEPS))
        at, width = step(sketch, at, width)
    last = sketch.weight(drawn(2, width, 1, 1, seed=99))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    m (float[N, 4, 6, 6] x) => (float[N, 2, 6, 6] y) {{ {" ".join(sketch.lines)} y = Conv({at}, {last}) }}"""
    return build(text, **sketch.weights)


@settings(max_examples=15, deadline=None)
@given(models())
def test_cutting_equals_masking_whatever_is_between_two_convolutions(proto: onnx.ModelProto) -> None:
    assert broken(plain(proto), trials=1) == []


@settings(max_examples=10, deadline=None)
@given(models())
def test_groups_are_found_alike_each_time(proto: onnx.ModelProto) -> None:
    assert groups(proto) == groups(proto)
