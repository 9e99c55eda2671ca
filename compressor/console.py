"""What the terminal shows. Facts come in, rich tables and bars go out; progress goes to standard error."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic_core import to_json
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from compressor.errors import OptionError
from compressor.gate import broken
from compressor.report import Report, Verdict, drop_words, headline, rows, verdict_words

if TYPE_CHECKING:
    from compressor.crossvalidation import CrossValidation
    from compressor.diagnosis import Diagnosis
    from compressor.evaluation import Evaluation
    from compressor.exporting import Exported
    from compressor.inspection import Inspection
    from compressor.latency import Latency
    from compressor.layer_sensitivity import Sensitivity
    from compressor.left_out import Scores
    from compressor.pages import Page
    from compressor.schedule_drawing import Curve


class _Output(Console):
    """Standard output; a reader that went away (`| head -1`) takes nothing from what was done."""

    def on_broken_pipe(self) -> None:
        """Write no more, and end without an error of the interpreter's own."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        """The rate, once known."""
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


class Screen:
    """Draws progress bars while it is open; `progress` is the callback for the engine."""

    def __init__(self, quiet: bool) -> None:
        console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bars.stop()

    def progress(self, what: str, done: int, total: int) -> None:
        """One bar at a time: a new one when the work changes, which is what stands before a colon."""
        work = what.partition(":")[0]
        if work != self._what or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(what, total=total or None)
            self._what = work
        self._bars.update(self._task, description=what, completed=done, total=total or None)


def print_report(report: Report, as_json: bool, quiet: bool) -> None:
    """The verdict first, then the table, what was declined, and where the file is."""
    if as_json:
        print(report.to_json())
        return
    out = _console()
    for line in _first_lines(report):
        out.print(line)
    if quiet:
        return
    for note in report.notes:
        out.print(f"[yellow]{escape(note)}[/yellow]")
    table = Table("", "before", "after", "change", title=escape(report.model), title_justify="left")
    for row in rows(report):
        table.add_row(*(escape(cell) for cell in row))
    out.print(table)
    _print_steps(out, report)
    for verdict in report.verdicts:
        colour = "green" if verdict.held else "red"
        out.print(
            f"[{colour}]{_limit_words(verdict)}: {verdict.measured:.4f}, {verdict_words(verdict)}[/{colour}]"
        )
    e = report.environment
    out.print(f"Evaluated on {escape(report.evaluated_on)}.")
    out.print(f"onnxruntime {e.onnxruntime}, {escape(e.cpu)}, {e.cores} cores ({', '.join(e.cpu_features)})")
    if report.output:
        out.print(f"Written: {escape(report.output)}")


def print_latencies(names: Sequence[str], timed: Sequence[Latency], as_json: bool) -> None:
    """A table per provider."""
    if as_json:
        _print_json({"models": list(names), "latency": list(timed)})
        return
    out = _console()
    for latency in timed:
        title = f"{latency.provider}, batch {latency.batch}, threads {latency.threads or 'all'}"
        table = Table("model", "p50 ms", "p95 ms", "cpu ms", "speed", "95 %", "verdict", title=title)
        ratios = (None, *latency.ratios)
        for name, timing, ratio in zip(names, latency.timings, ratios, strict=True):
            speed = ("1.00x", "", "reference") if ratio is None else _ratio_cells(ratio)
            table.add_row(
                escape(name),
                f"{timing.wall_p50:.3f}",
                f"{timing.wall_p95:.3f}",
                f"{timing.cpu_p50:.3f}",
                *speed,
            )
        out.print(table)
        if latency.ratios:
            out.print(
                f"{latency.ratios[0].clock} time; two sessions of the first model: {latency.ratios[0].noise:.1%}"
            )


def print_evaluation(found: Evaluation, as_json: bool) -> None:
    """The score and, with a reference, the drop."""
    if as_json:
        _print_json(found)
        return
    if found.score is not None:
        s = found.score
        print(f"{found.metric} {s.value:.4f} [{s.low:.4f}, {s.high:.4f}] (95 %, n={found.samples})")
    else:
        print(
            f"No labels: {found.samples} samples ran."
            + ("" if found.comparison else " Give --reference MODEL to compare.")
        )
    if found.comparison is not None:
        print(f"Against the reference: {drop_words(found.comparison)}")


def print_crossval(found: CrossValidation, as_json: bool) -> None:
    """What all folds say together, then each of them, and what a pass left alone."""
    if as_json:
        print(found.to_json())
        return
    out = _console()
    name = f"{found.pooled.agrees_in} agreement" if found.pooled.agrees_in else found.metric
    paired = found.pooled.drop is not None
    rows = {str(number): fold.scores for number, fold in enumerate(found.folds, 1)}
    rows |= {"mean of folds": found.mean, "all together": found.pooled}
    table = Table("fold", "samples", "before", "after", "drop", "95 % of the drop" if paired else "95 %")
    for title, scores in rows.items():
        table.add_row(title, str(scores.samples), *_score_cells(scores))
    out.print(f"[bold]{escape(name)} on {found.pooled.samples} samples, each left out of one training[/bold]")
    out.print(table)
    for number, fold in enumerate(found.folds, 1):
        for change in fold.changes:
            for left, reason in change.declined.items():
                out.print(f"left alone in fold {number}: {escape(left)}: {escape(reason)}")


def print_sensitivity(found: Sensitivity, as_json: bool) -> None:
    """A table per kind with a row per layer and a column per level, and the drop of the score in each."""
    if as_json:
        print(found.to_json())
        return
    out = _console()
    score = "" if found.score is None else f" (now {found.score.value:.4f})"
    title = f"Drop of {escape(found.metric)}{score} on {found.samples} samples, one layer at a time"
    out.print(f"[bold]{title}[/bold]")
    headings = {"sparsity": "{:.0%} zeros", "channels": "{:.1%} cut", "bits": "{:g} bit"}
    for kind in found.kinds():
        levels = found.levels(kind)
        table = Table("layer", *(headings[kind].format(level) for level in levels))
        for name, kinds in found.layers.items():
            if kind in kinds:
                cells = [kinds[kind].get(level) for level in levels]
                table.add_row(escape(name), *("" if c is None else f"{c.value:+.4f}" for c in cells))
        out.print(table)
    curves = [curve for kinds in found.layers.values() for curve in kinds.values()]
    widest = max((drop.high - drop.low for curve in curves for drop in curve.values()), default=0.0)
    out.print(f"95 % intervals are in the JSON; the widest spans {widest:.4f}.")
    for name, reason in found.declined.items():
        out.print(f"not tried: {escape(name)}: {escape(reason)}")


def print_inspection(found: Inspection, as_json: bool) -> None:
    """Inputs, operators, size, and what the passes find."""
    if as_json:
        _print_json(found)
        return
    out = _console()
    for title, values in (("input", found.inputs), ("output", found.outputs)):
        for name, kind in values.items():
            out.print(f"{title} {escape(name)}: {escape(kind)}")
    s = found.summary
    zeros = 1 - s.nonzero / s.parameters if s.parameters else 0.0
    macs = "unknown" if s.macs is None else f"{s.macs / 1e6:.2f} M"
    each = found.size.bits_per_weight
    out.print(
        f"opset {found.opset}, {found.size.bytes / 1e6:.3f} MB, {s.parameters:,} weights"
        + ("" if each is None else f" of {each:.2f} bits on disk")
        + f", {zeros:.1%} zeros, MACs {macs}"
    )
    out.print(
        f"quantized: {s.quantized}"
        + (f"; the ONNX checker refuses it: {escape(found.invalid)}" if found.invalid else "")
    )
    table = Table("operator", "count")
    for name, count in s.operators.items():
        table.add_row(name, str(count))
    out.print(table)
    if found.low_bit:
        out.print(_low_bit_table(found))
    for name, what in found.compressible.items():
        out.print(f"{name}: {escape(what)}")


def print_export(found: Exported, as_json: bool) -> None:
    """What was written, and its differences from torch."""
    if as_json:
        _print_json(found)
        return
    for title, values in (("input", found.inputs), ("output", found.outputs)):
        for name, kind in values.items():
            print(f"{title} {name}: {kind}")
    for each in found.parity:
        at = "".join(f" {symbol}={size}" for symbol, size in each.sizes.items())
        print(f"parity with torch, {each.output}{at}: {each.absolute:.2g}, relative {each.relative:.2g}")
    kept = found.parameters - len(found.missing)
    print(f"{kept} of {found.parameters} parameters under their own names; opset {found.opset}")
    for note in found.notes:
        print(note)
    print(f"Written: {', '.join(str(file) for file in found.files)}")


def print_overview(found: dict[str, str]) -> None:
    """One line per pass."""
    width = max(len(name) for name in found)
    for name, line in found.items():
        print(f"{name:<{width}}  {line}")


def print_page(found: Page) -> None:
    """A pass's page."""
    print(f"{found.name}\n\n{found.text}\n")
    for name, (kind, default, text) in found.options.items():
        print(f"  {name} = {default}\n      {text} ({kind})")


def print_schedule(found: Curve, as_json: bool) -> None:
    """The learning rate as a drawing of the terminal's width, 100 columns at most."""
    if as_json:
        _print_json(found)
        return
    print(found.text(width=max(40, min(100, _console().width))))


def print_diagnosis(found: Diagnosis, as_json: bool) -> None:
    """Versions and providers."""
    if as_json:
        _print_json(found)
        return
    e = found.environment
    print(
        f"onnx-compressor {e.tool}, Python {e.python}, onnx {e.onnx}, onnxruntime {e.onnxruntime}, {e.system}"
    )
    print(f"{e.cpu}, {e.cores} cores: {', '.join(e.cpu_features) or 'features unknown'}; {found.int8}")
    for name, reason in found.providers.items():
        print(f"provider {name}: {'works' if reason is None else reason}")


def _console() -> Console:
    """Standard output; 120 columns where it is not a terminal, so that logs stay readable."""
    closed = sys.stdout is None  # `>&-`
    out = open(os.devnull, "w") if closed else sys.stdout  # noqa: SIM115
    return _Output(file=out, soft_wrap=True, highlight=False, width=None if out.isatty() else 120)


def _low_bit_table(found: Inspection) -> Table:
    """A row per weight of few bits, then those together, the other weights and all of them."""
    table = Table(Column("weight", overflow="fold"), Column("codes", no_wrap=True))
    for heading in ("weights", "bits on disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    for weight in found.low_bit:
        table.add_row(
            *_low_bit_cells(escape(weight.name), str(weight), weight.parameters, weight.stored_bits)
        )
    table.add_section()
    kinds = Counter(weight.kind for weight in found.low_bit)
    few = sum(weight.parameters for weight in found.low_bit)
    known = [w.stored_bits * w.parameters for w in found.low_bit if w.stored_bits is not None]
    bits = sum(known) if len(known) == len(found.low_bit) else None
    words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    table.add_row(*_low_bit_cells("those above", words, few, None if bits is None else bits / max(few, 1)))
    others = found.size.parameters - few
    if others > 0:
        rest = None if bits is None else (8 * found.size.weight_bytes - bits) / others
        table.add_row(*_low_bit_cells("the others", "", others, rest))
    table.add_row(*_low_bit_cells("all", "", found.size.parameters, found.size.bits_per_weight))
    return table


def _low_bit_cells(name: str, codes: str, count: int, bits: float | None) -> tuple[str, str, str, str]:
    return name, codes, f"{count:,}", "" if bits is None else f"{bits:.2f}"


def _print_json(found: object) -> None:
    print(to_json(found, indent=2, inf_nan_mode="null").decode())


def _first_lines(report: Report) -> list[str]:
    failed = broken(report)
    if not failed:
        return [f"[bold]{escape(headline(report))}[/bold]"]
    words = "; ".join(f"{_limit_words(v)} is broken: {v.measured:.4f}" for v in failed)
    first = f"[bold red]{escape(words)}[/bold red]"
    slow = any(v.limit.startswith("not slower") for v in failed)
    keep = " Give --min-speedup 0 to keep a slower model." if slow else ""
    where = f" The candidate is in {report.output}." if report.output else ""
    return [f"{first}." + escape(where + keep), escape(headline(report))]


def _limit_words(verdict: Verdict) -> str:
    return verdict.limit if verdict.limit.startswith("not slower") else f"{verdict.limit} {verdict.wanted:g}"


def _print_steps(out: Console, report: Report) -> None:
    for step in report.steps:
        figures = ", ".join(f"{name} {_number(value)}" for name, value in step.figures.items())
        done = f"{step.touched} changed, " if step.touched else ""
        out.print(
            f"[bold]{escape(_brief(step.recipe))}[/bold]: {done}{step.seconds:.1f} s. {escape(figures)}"
        )
        for name, reason in step.declined.items():
            out.print(f"  left alone: {escape(name)}: {escape(reason)}")


def _brief(recipe: str) -> str:
    """A recipe without the options at their defaults, of which a training has sixty; other steps as they are."""
    from compressor.pipeline import Pipeline

    try:
        return ",".join(p.brief for p in Pipeline.parse(recipe))
    except OptionError:
        return recipe


def _number(value: Any) -> str:
    """Four digits; all of a whole number, and of the whole part of a large one."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 or value.is_integer() else f"{value:.4g}"


def _score_cells(scores: Scores) -> tuple[str, str, str, str]:
    """Before, after and drop, and the interval of the drop; that of the score where there is no drop."""
    before = "" if scores.before is None else f"{scores.before.value:.4f}"
    after, drop = f"{scores.after.value:.4f}", scores.drop
    if drop is None:
        return before, after, "", f"[{scores.after.low:.4f}, {scores.after.high:.4f}]"
    return before, after, f"{drop.value:+.4f}", f"[{drop.low:+.4f}, {drop.high:+.4f}]"


def _ratio_cells(ratio: Any) -> tuple[str, str, str]:
    return (f"{ratio.value:.2f}x", f"[{ratio.low:.2f}, {ratio.high:.2f}]", ratio.verdict)
