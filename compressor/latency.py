"""How much faster one model is than another on this machine, with an interval that survives a busy machine.

All models are timed in one process. A visit times one model for about `visit_ms`: an untimed run, then many
runs whose median is the visit's time. A round visits every model once, in random order, and gives one ratio
per model against the first. Sessions are made anew every few rounds, because a session keeps an offset of 1
to 3 % from where its memory lies. The first model is loaded twice: the ratio of the two (A/A) should be 1,
and how far its interval strays from 1 widens every other interval, so a gain below the noise of the run
gets no verdict.

With one thread on the CPU the clock is the thread's CPU time, which other processes disturb ten times less
than wall time. What the times say, and how the time is spent, is the arithmetic of `timing`.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError, OptionError
from compressor.pipeline import Progress, silent
from compressor.runtime import Session, Setup, runnable, short_name
from compressor.timing import FEWEST, Clock, Plan, Protocol, Ratio, compare, noise_floor, plan, starts_session

__all__ = ["DEFAULT", "Clock", "Latency", "Protocol", "Ratio", "Timing", "measure"]

_WARM_SECONDS = 0.25


@dataclass(frozen=True)
class Timing:
    """One model in one setting, over all timed runs, in milliseconds.

    Args:
        wall_p50: median of the wall time of a run.
        wall_p95: its 95th percentile.
        cpu_p50: median CPU time of the calling thread, where the clock is "cpu"; else the same as `wall_p50`.
    """

    wall_p50: float
    wall_p95: float
    cpu_p50: float


@dataclass(frozen=True)
class Latency:
    """Every model in one setting.

    Args:
        provider: short name of the provider.
        batch: first axis of the first input; 1 where it has none.
        threads: as asked for; 0 is one per core.
        visits: rounds that were made.
        timings: one per model, in order.
        ratios: one per model after the first, against the first.
    """

    provider: str
    batch: int
    threads: int
    visits: int
    timings: tuple[Timing, ...]
    ratios: tuple[Ratio, ...]


DEFAULT = Protocol()


def measure(
    models: Sequence[ir.Model | bytes | Path],
    feeds: Mapping[str, np.ndarray],
    setup: Setup,
    protocol: Protocol = DEFAULT,
    progress: Progress = silent,
) -> Latency:
    """Time every model against the first. All are in memory at the same time, the first one twice.

    Args:
        models: the reference and its candidates, with the same inputs.
        feeds: one batch, by input name.
        setup: provider and threads; its `dump` and `profile` are left out, since they take time.
        protocol: how long and how often.
        progress: called after every round.

    Raises:
        OptionError: there is no model, or the provider is missing.
        ModelError: a model does not load, or does not run on the feeds.
    """
    if not models:
        raise OptionError("Latency: at least one model is needed, got none.")
    start = time.perf_counter()
    clock: Clock = "cpu" if _thread_clock_is_right(setup) else "wall"
    with ExitStack() as stack:
        stack.enter_context(_no_garbage_collection())
        sources = [_source(model, stack) for model in models]
        sources += sources[:1] if len(models) > 1 else []
        bench = _Bench(sources, feeds, replace(setup, dump=None, profile=None), random.Random(protocol.seed))
        bench.open(protocol.warmup)
        chosen = plan(bench.run_s, time.perf_counter() - start, protocol)
        for visit in range(chosen.visits):
            if visit >= FEWEST and time.perf_counter() - start > protocol.time_limit_s:
                break
            if visit and starts_session(visit, chosen):
                bench.open(protocol.warmup)
            bench.round(chosen)
            progress("timing", visit + 1, chosen.visits)
    shape = next((np.shape(array) for array in feeds.values()), ())
    return Latency(
        provider=short_name(setup.provider),
        batch=shape[0] if shape else 1,
        threads=setup.threads,
        visits=len(bench.rounds),
        timings=tuple(_timing(bench.rounds, i, clock) for i in range(len(models))),
        ratios=_ratios(bench.rounds, len(models), clock),
    )


@dataclass
class _Bench:
    """The sessions of the moment, and what was measured so far.

    rounds: per round one array [runs, 2] per model: wall and thread CPU nanoseconds.
    """

    sources: Sequence[bytes | Path]
    feeds: Mapping[str, np.ndarray]
    setup: Setup
    order: random.Random
    calls: dict[int, Callable[[], None]] = field(default_factory=dict)
    run_s: tuple[float, ...] = ()
    rounds: list[list[np.ndarray]] = field(default_factory=list)

    def open(self, warmup: int) -> None:
        """Replace all sessions, in random order, and warm them."""
        self.calls.clear()
        seconds = {}
        for i in self._shuffled():
            try:
                self.calls[i], seconds[i] = _warm(Session(self.sources[i], self.setup), self.feeds, warmup)
            except ModelError as error:
                number = self.sources.index(self.sources[i]) + 1
                raise ModelError(f"Latency: model {number}: {error}") from error
        self.run_s = tuple(seconds[i] for i in range(len(self.sources)))

    def round(self, chosen: Plan) -> None:
        """Visit every model once, in random order."""
        visits = {i: _visit(self.calls[i], chosen.settle, chosen.runs[i]) for i in self._shuffled()}
        self.rounds.append([visits[i] for i in range(len(self.sources))])

    def _shuffled(self) -> list[int]:
        return self.order.sample(range(len(self.sources)), len(self.sources))


def _source(model: ir.Model | bytes | Path, stack: ExitStack) -> bytes | Path:
    """What sessions are made of, again and again; a temporary folder, if needed, goes with the stack."""
    if not isinstance(model, ir.Model):
        return model
    source, folder = runnable(model)
    if folder:
        stack.enter_context(folder)
    return source if isinstance(source, bytes) else Path(source)


def _warm(session: Session, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[Callable[[], None], float]:
    """The bound call and the seconds of its fastest run. The first run is plain: its errors are explained."""
    begin = time.perf_counter()
    session.run(feeds)
    end = time.perf_counter()
    fastest, limit = end - begin, begin + _WARM_SECONDS
    call = session.bound(feeds)
    for _ in range(runs):
        if end > limit:
            break
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
        fastest = min(fastest, end - begin)
    return call, fastest


def _visit(call: Callable[[], None], settle: int, runs: int) -> np.ndarray:
    """Wall and thread CPU nanoseconds of each run, [runs, 2]."""
    for _ in range(settle):
        call()
    times = []
    for _ in range(runs):
        cpu = time.thread_time_ns()
        wall = time.perf_counter_ns()
        call()
        wall = time.perf_counter_ns() - wall
        times.append((wall, time.thread_time_ns() - cpu))
    return np.asarray(times, dtype=float)


def _column(clock: Clock) -> int:
    return 1 if clock == "cpu" else 0


def _timing(rounds: Sequence[Sequence[np.ndarray]], model: int, clock: Clock) -> Timing:
    runs = np.concatenate([r[model] for r in rounds]) / 1e6
    p50, p95 = np.percentile(runs[:, 0], (50, 95))
    return Timing(float(p50), float(p95), float(np.median(runs[:, _column(clock)])))


def _ratios(rounds: Sequence[Sequence[np.ndarray]], models: int, clock: Clock) -> tuple[Ratio, ...]:
    """Each candidate against the first model; the last array of a round is the control."""
    if models == 1:
        return ()
    times = np.array([[np.median(runs[:, _column(clock)]) for runs in r] for r in rounds])
    noise = noise_floor((times[:, 0] / times[:, -1]).tolist())
    return tuple(compare(times[:, 0].tolist(), times[:, i].tolist(), noise, clock) for i in range(1, models))


def _thread_clock_is_right(setup: Setup) -> bool:
    """Whether all the work is done by the calling thread, and its clock ticks finely (Windows: 16 ms)."""
    return setup.threads == 1 and short_name(setup.provider) == "cpu" and sys.platform != "win32"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
