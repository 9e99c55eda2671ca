"""Limits that a result must keep, and the verdict on each."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.errors import DataError, GateError, OptionError
from compressor.report import Report, Verdict, verdict_words


@dataclass(frozen=True)
class Limits:
    """What must hold. None: no such limit.

    Args:
        max_drop: the largest loss of the metric, in its own units (0.01 of top-1 is one point).
        min_speedup: the least latency ratio, original / candidate, on every measured provider.
        min_ratio: how many times smaller the file must be.
        not_slower: the candidate must not be measurably slower; "no difference to be seen" holds.
    """

    max_drop: float | None = None
    min_speedup: float | None = None
    min_ratio: float | None = None
    not_slower: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant."""
        for name in ("max_drop", "min_speedup", "min_ratio"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise OptionError(f"{name.replace('_', '-')} must be a number from 0 on, got {value!r}.")


def judge(report: Report, limits: Limits) -> tuple[Verdict, ...]:
    """One verdict per limit that is set; a limit is broken when the measured value is beyond it."""
    verdicts: list[Verdict] = []
    if limits.max_drop is not None:
        if report.accuracy is None:
            raise DataError("max-drop needs evaluation samples. Give --data FILE.npz, or data=... in Python.")
        drop = report.accuracy.drop
        certain = not drop.low <= limits.max_drop <= drop.high
        name = "max-drop" if drop_of_labels(report) else "max-drop (of agreement: no labels)"
        verdicts.append(_verdict(name, limits.max_drop, drop.value, drop.value <= limits.max_drop, certain))
    if limits.min_speedup is not None:
        for latency in report.latency:
            ratio = latency.ratios[-1]
            certain = not ratio.low <= limits.min_speedup <= ratio.high
            held = ratio.value >= limits.min_speedup
            verdicts.append(
                _verdict(f"min-speedup ({latency.provider})", limits.min_speedup, ratio.value, held, certain)
            )
    if limits.not_slower:
        for latency in report.latency:
            ratio = latency.ratios[-1]
            held = ratio.verdict != "slower"
            verdicts.append(_verdict(f"not slower ({latency.provider})", 1.0, ratio.value, held, True))
    if limits.min_ratio is not None:
        verdicts.append(
            _verdict("min-ratio", limits.min_ratio, report.ratio, report.ratio >= limits.min_ratio, True)
        )
    return tuple(verdicts)


def drop_of_labels(report: Report) -> bool:
    """True when the drop is that of a labelled metric, and not of agreement with the original."""
    return report.accuracy is not None and report.accuracy.verified == "labels"


def broken(report: Report) -> tuple[Verdict, ...]:
    """The limits that did not hold."""
    return tuple(v for v in report.verdicts if not v.held)


def raise_for_limits(report: Report) -> None:
    """Raise GateError when a limit of the report is broken."""
    if found := broken(report):
        raise GateError(
            "; ".join(f"{v.limit} {v.measured:.4f}, limit {v.wanted:g}: {verdict_words(v)}" for v in found)
        )


def _verdict(limit: str, wanted: float, measured: float, held: bool, certain: bool) -> Verdict:
    return Verdict(limit=limit, wanted=wanted, measured=measured, held=held, certain=certain)
