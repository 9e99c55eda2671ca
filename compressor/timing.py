"""The arithmetic of latency: what fits into a time limit, and what times say about the ratio of two models.

The interval of a median lies between two order statistics (David and Nagaraja, Order Statistics, 7.1), which
assumes nothing about the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from compressor.errors import OptionError

Clock = Literal["cpu", "wall"]
FEWEST = 5
"""The fewest rounds: the interval of the median of fewer values is below 93.75 %."""


@dataclass(frozen=True)
class Ratio:
    """Reference time / candidate time: above 1 the candidate is faster.

    Args:
        value: median of the ratios of the rounds.
        low: lower end of its 95 % interval, widened by the noise floor.
        high: upper end.
        noise: how far the same interval of the reference against itself strays from 1: 0.02 is 2 %.
        clock: which time the ratio is of, "cpu" (of the thread) or "wall".
    """

    value: float
    low: float
    high: float
    noise: float
    clock: Clock

    @property
    def verdict(self) -> Literal["faster", "slower", "same"]:
        """What the interval allows to say; "same" means not distinguishable."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "same"


@dataclass(frozen=True)
class Protocol:
    """How long and how often is measured. The defaults take about 3 s for two models of 1 ms.

    Args:
        visits: rounds in all, at least 5. Slow models get fewer, never under 5.
        visit_ms: timed milliseconds per model and round; a slower model runs once.
        sessions: how often the sessions are made anew, at most once per visit; slow models get fewer.
        warmup: untimed runs of a new session after its first; no more begin once 0.25 s have passed.
        seed: of the random order.
        time_limit_s: what all of it should take at most. Five runs of very slow models take what they take.

    Raises:
        OptionError: a value is out of range.
    """

    visits: int = 36
    visit_ms: float = 20.0
    sessions: int = 9
    warmup: int = 3
    seed: int = 0
    time_limit_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"visits": FEWEST, "sessions": 1, "warmup": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise OptionError(f"Latency: {name} must be at least {bound}, got {getattr(self, name)!r}.")
        for name in ("visit_ms", "time_limit_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"Latency: {name} must be above 0 and finite, got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class Plan:
    """What fits into the time limit.

    Args:
        visits: rounds.
        sessions: how often the sessions are made, the first time included.
        settle: untimed runs at the start of a visit.
        runs: timed runs per visit, one number per model.
    """

    visits: int
    sessions: int
    settle: int
    runs: tuple[int, ...]


def plan(run_s: Sequence[float], session_s: float, protocol: Protocol) -> Plan:
    """How to spend the time limit.

    Too little time costs first sessions, then the untimed run of each visit, then visits.

    Args:
        run_s: seconds of one run, one per model, the control included.
        session_s: seconds to make and warm all sessions once.
        protocol: what is wanted.

    >>> plan((0.001, 0.001, 0.0005), 0.1, Protocol())
    Plan(visits=36, sessions=9, settle=1, runs=(20, 20, 40))
    >>> plan((1.0, 1.0, 1.0), 4.0, Protocol())
    Plan(visits=6, sessions=3, settle=0, runs=(1, 1, 1))
    """
    runs = tuple(max(1, round(protocol.visit_ms / 1000 / max(s, 1e-6))) for s in run_s)
    most = min(protocol.sessions, protocol.visits)

    def fitting(sessions: int, settle: int) -> int:
        left = protocol.time_limit_s - sessions * session_s
        round_s = sum(s * (settle + n) for s, n in zip(run_s, runs, strict=True))
        return min(protocol.visits, math.floor(left / max(round_s, 1e-6)))

    for settle in (1, 0):
        for sessions in range(most, 0, -1):
            if fitting(sessions, settle) == protocol.visits:
                return Plan(protocol.visits, sessions, settle, runs)
    for sessions in range(most, 1, -1):
        if fitting(sessions, 0) >= max(FEWEST, 2 * sessions):
            return Plan(fitting(sessions, 0), sessions, 0, runs)
    return Plan(max(FEWEST, fitting(1, 0)), 1, 0, runs)


def starts_session(visit: int, chosen: Plan) -> bool:
    """Whether new sessions are due before a round: rounds are spread evenly over the sessions.

    >>> [visit for visit in range(8) if starts_session(visit, Plan(8, 3, 1, (1,)))]
    [0, 3, 6]
    """
    return (
        visit == 0
        or visit * chosen.sessions // chosen.visits > (visit - 1) * chosen.sessions // chosen.visits
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, from order statistics. Five values reach 93.75 %, fewer still less.

    >>> interval([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    (2.0, 10.0)
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n, cut = len(ordered), 0
    while 2 * sum(math.comb(n, k) for k in range(cut + 2)) <= 0.05 * 2**n:
        cut += 1
    return float(ordered[cut]), float(ordered[n - 1 - cut])


def noise_floor(control: Sequence[float]) -> float:
    """How far the interval of the A/A ratios (two sessions of one model, one ratio per round) strays from 1.

    >>> round(noise_floor([0.98, 0.99, 1.0, 1.0, 1.0, 1.0, 1.01]), 4)
    0.0204
    """
    return math.expm1(float(np.abs(np.log(interval(control))).max()))


def compare(reference: Sequence[float], candidate: Sequence[float], noise: float, clock: Clock) -> Ratio:
    """The ratio of paired times, its interval widened by the noise.

    >>> compare([2.0] * 6, [1.0] * 6, 0.25, "cpu")
    Ratio(value=2.0, low=1.6, high=2.5, noise=0.25, clock='cpu')
    """
    ratios = np.asarray(reference, dtype=float) / np.asarray(candidate, dtype=float)
    low, high = interval(ratios.tolist())
    return Ratio(float(np.median(ratios)), low / (1 + noise), high * (1 + noise), noise, clock)
