"""The command line: read arguments, call the function behind the subcommand, print, exit.

Exit codes: 0 done, 1 refused with the reason, 2 usage, 3 a limit was broken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from compressor.gate import Limits
    from compressor.pipeline import Run
    from compressor.proof import Target
    from compressor.report import Report

Command = Callable[..., Any]


class Commands(click.Group):
    """A group whose default command is `model`: `compress MODEL` compresses."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Insert the default command when the first word is not a subcommand."""
        if args and args[0] not in self.commands:
            args = ["model", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let options of the default command come first, as in `compress -p ... MODEL`."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = ["model", *args]
        return super().parse_args(ctx, args)


def _shared(*options: Command) -> Command:
    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_path = click.Path(path_type=Path)
_metric = click.option(
    "--metric",
    metavar="NAME",
    help="top1, top5, f1, auc, mse, mae, psnr, cosine, spearman, perplexity, or FILE.py:FUNCTION.",
)
_providers = click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="cpu, cuda, tensorrt, openvino, coreml, ...; may be repeated.",
)
_threads = click.option(
    "--threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Threads of the latency measurement; 0: all cores.",
)
_batch = click.option(
    "--batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Samples per run in the latency measurement.",
)
_seed = click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of made-up samples, resampling and the order of timing.",
)
_target_options = _shared(_metric, _providers, _threads, _batch, _seed)
_limit_options = _shared(
    click.option(
        "--max-drop",
        type=float,
        metavar="X",
        help="Largest loss of the metric, in its units (0.01: one point of top-1).",
    ),
    click.option("--min-speedup", type=float, metavar="X", help="Least speed, original time / new time."),
    click.option("--min-ratio", type=float, metavar="X", help="How many times smaller the file must be."),
)
_hook_options = _shared(
    click.option(
        "--callback",
        "callbacks",
        multiple=True,
        metavar="MODULE:CLASS",
        help="A Lightning callback, a hook of the training; may be repeated.",
    ),
    click.option(
        "--log", type=_path, metavar="DIR", help="Write the curves of a training (CSV, TensorBoard)."
    ),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint of an interrupted run."),
)
_run_options = _shared(
    _hook_options,
    click.option(
        "--checkpoint",
        type=_path,
        metavar="DIR",
        help="Keep the state of a training after every epoch; default: OUTPUT.checkpoint, removed at the end.",
    ),
)
_report_options = _shared(
    click.option(
        "--report",
        "reports",
        multiple=True,
        type=_path,
        metavar="FILE",
        help="Write a report; .json or .md; may be repeated.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
    click.option("--quiet", is_flag=True, help="Print the first line only."),
)


def _refusing(function: Command) -> Command:
    """Print the user's errors as one line and exit with 1; Ctrl-C likewise."""

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        from compressor.errors import CompressorError

        try:
            return function(*args, **options)
        except CompressorError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        except OSError as error:
            click.echo(f"Error: the output cannot be printed: {error.strerror}.", err=True)
            sys.exit(1)
        except (KeyboardInterrupt, ImportError) as error:
            if not _is_interruption(error):
                raise
            hint = _how_to_resume(options)
            click.echo(
                f"Interrupted: the input is untouched and no half-written file is left.{hint}", err=True
            )
            sys.exit(1)

    return run


def _is_interruption(error: BaseException) -> bool:
    """Whether Ctrl-C is at the bottom of it: pressed while a binary module loads, it comes out as ImportError."""
    below = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt) or (below is not None and _is_interruption(below))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnx-compressor", prog_name="compress")
def main() -> None:
    """Make an ONNX model smaller and faster, and prove it on this machine's onnxruntime.

    \b
    compress MODEL [-o OUT] [-p PIPELINE] [--calibration DATA] [--data DATA]

    DATA is PATH or PATH{option=value ...}: an .npz with arrays named like the model's inputs (labels under
    `labels`), a folder of .npy files, a folder of images with one sub-folder per class, a .csv or .parquet table,
    or module_or_file.py:function. `compress model --help` lists the options.
    """


@main.command("model", short_help="Compress a model (the default command).")
@click.argument("model", type=_path)
@click.option(
    "-o", "--output", type=_path, help="Where to write; default: MODEL.compressed.onnx beside the input."
)
@click.option(
    "-p",
    "--pipeline",
    metavar="PIPELINE|@FILE",
    help="Passes, as in 'quantize-int8{calibration=entropy}'; see `compress passes`.",
)
@click.option("--calibration", metavar="DATA", help="Samples for activation ranges; no labels needed.")
@click.option("--data", metavar="DATA", help="Evaluation samples.")
@click.option("--train", metavar="DATA", help="Samples for passes that train.")
@click.option("--old", metavar="DATA", help="Samples of the earlier task, for replay and ewc.")
@_limit_options
@_target_options
@_run_options
@_report_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--strict", is_flag=True, help="Write nothing when a limit is broken.")
@_refusing
def compress_model(model: Path, output: Path | None, **options: Any) -> None:
    """Compress MODEL, measure the result against it, and write it with proof."""
    from compressor.compressing import compress
    from compressor.console import Screen
    from compressor.gate import broken
    from compressor.model_io import check_target, files_of, is_ours

    files_of(model)
    target_file = _output(model, output)
    rejected = target_file.with_name(f"{target_file.stem}.rejected.onnx")
    check_target(target_file, files_of(model), options["force"])
    check_target(rejected, files_of(model), options["force"] or is_ours(rejected))
    _check_reports(options["reports"])
    with _checkpoint(options, target_file), Screen(options["quiet"] or options["as_json"]) as screen:
        result = compress(
            model,
            _recipe(options["pipeline"]),
            calibration=options["calibration"],
            data=options["data"],
            train=options["train"],
            old=options["old"],
            target=_target(options),
            limits=_limits(options),
            run=_run(options, target_file),
            progress=screen.progress,
        )
        failed = broken(result.report)
        place = None if failed and options["strict"] else rejected if failed else target_file
        if place is not None:
            written = result.save(place, force=options["force"] or bool(failed))
            size = sum(file.stat().st_size for file in written)
    report = result.report
    if place is not None:
        after = report.after.model_copy(update={"bytes": size})
        report = report.model_copy(update={"output": str(place), "after": after})
    _finish(report, options)
    if failed:
        sys.exit(3)


@main.command()
@click.argument("models", type=_path, nargs=-1, required=True)
@click.option("--data", metavar="DATA", help="Samples to time on; default: made-up inputs.")
@_providers
@_threads
@_batch
@_seed
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def bench(models: tuple[Path, ...], **options: Any) -> None:
    """Time models side by side, interleaved; ratios are against the first."""
    from compressor import console, evaluation

    with console.Screen(options["as_json"]) as screen:
        timed = evaluation.bench(
            models, data=options["data"], target=_target(options), progress=screen.progress
        )
    console.print_latencies([str(m) for m in models], timed, options["as_json"])


@main.command()
@click.argument("model", type=_path)
@click.option("--data", required=True, metavar="DATA", help="Evaluation samples.")
@click.option("--reference", type=_path, help="A model to compare with, on the same samples.")
@_metric
@click.option("--provider", metavar="NAME", default="cpu", show_default=True, help="Where it runs.")
@_seed
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def evaluate(model: Path, data: str, reference: Path | None, **options: Any) -> None:
    """Score MODEL on labelled samples, with a 95 % interval."""
    from compressor import console, evaluation

    with console.Screen(options["as_json"]) as screen:
        found = evaluation.evaluate(
            model, data, reference=reference, target=_target(options), progress=screen.progress
        )
    console.print_evaluation(found, options["as_json"])


@main.command()
@click.argument("model", type=_path)
@click.option(
    "-p",
    "--pipeline",
    required=True,
    metavar="PIPELINE|@FILE",
    help="Passes, one of which trains or calibrates.",
)
@click.option("--train", required=True, metavar="DATA", help="Samples, dealt into folds.")
@click.option("--old", metavar="DATA", help="Samples of the earlier task, for replay and ewc.")
@click.option("--folds", type=int, default=5, show_default=True, help="How often to train.")
@_metric
@click.option("--provider", metavar="NAME", default="cpu", show_default=True, help="Where it is scored.")
@_seed
@_hook_options
@click.option(
    "--checkpoint", type=_path, metavar="DIR", help="Keep the state of each training after every epoch."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def crossval(model: Path, pipeline: str, train: str, folds: int, **options: Any) -> None:
    """Cross-validate a training on small data: train once per fold, score on the samples left out of it."""
    from compressor import console, crossvalidation
    from compressor.pipeline import Run

    hooks = _callbacks(options["callbacks"])
    with console.Screen(options["as_json"]) as screen:
        found = crossvalidation.crossval(
            model,
            _recipe(pipeline) or "",
            train,
            folds=folds,
            old=options["old"],
            target=_target(options),
            run=Run(hooks, options["log"], options["checkpoint"], options["resume"]),
            progress=screen.progress,
        )
    console.print_crossval(found, options["as_json"])


@main.command()
@click.argument("model", type=_path)
@click.option("--data", required=True, metavar="DATA", help="Evaluation samples; a few hundred are a start.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["sparsity", "channels", "bits"]),
    help="What to try on each layer; may be repeated; default: all.",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Only layers with such a node or weight name.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No layers with such a node or weight name.")
@_metric
@click.option("--provider", metavar="NAME", default="cpu", show_default=True, help="Where it is scored.")
@click.option(
    "-o", "--output", type=_path, metavar="FILE.json", help="Write what passes take as sensitivity=FILE."
)
@click.option("--plot", type=_path, metavar="FILE", help="Draw it; .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_seed
@_refusing
def sensitivity(model: Path, data: str, output: Path | None, plot: Path | None, **options: Any) -> None:
    """Compress one layer at a time and show how much the score drops: by zeros, by channels cut, by bits."""
    from compressor import console, sensitivity_plot
    from compressor.layer_sensitivity import check_folder
    from compressor.layer_sensitivity import sensitivity as measure

    if plot is not None:
        sensitivity_plot.check_plot(plot)
    if output is not None:
        check_folder(output)
    with console.Screen(options["as_json"]) as screen:
        found = measure(
            model,
            data,
            **({"kinds": options["kinds"]} if options["kinds"] else {}),
            include=options["include"],
            exclude=options["exclude"],
            target=_target(options),
            progress=screen.progress,
        )
    if output is not None:
        found.save(output)
    if plot is not None:
        sensitivity_plot.plot(found, plot)
    console.print_sensitivity(found, options["as_json"])


@main.command()
@click.argument("candidate", type=_path)
@click.option("--reference", type=_path, required=True, help="The model to compare with.")
@click.option("--data", metavar="DATA", help="Evaluation samples.")
@_limit_options
@_target_options
@_report_options
@_refusing
def check(candidate: Path, reference: Path, **options: Any) -> None:
    """The gate: judge CANDIDATE against a reference; exit 3 when a limit is broken."""
    from compressor.compressing import check as judge
    from compressor.console import Screen
    from compressor.gate import broken

    _check_reports(options["reports"])
    with Screen(options["quiet"] or options["as_json"]) as screen:
        report = judge(
            candidate,
            reference,
            data=options["data"],
            target=_target(options),
            limits=_limits(options),
            progress=screen.progress,
        )
    _finish(report, options)
    if broken(report):
        sys.exit(3)


@main.command()
@click.argument("model", type=_path)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def inspect(model: Path, as_json: bool) -> None:
    """Show what is in MODEL and what can be compressed."""
    from compressor import console, inspection

    console.print_inspection(inspection.inspect(model), as_json)


@main.command()
@click.argument("name", required=False)
@_refusing
def passes(name: str | None) -> None:
    """List the passes, or show one pass's page."""
    from compressor import console, pages

    if name is None:
        console.print_overview(pages.overview())
    else:
        console.print_page(pages.page(name))


@main.command()
@click.argument("source")
@click.option("-o", "--output", type=_path, required=True, help="Where to write.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SHAPE:TYPE",
    help="An example input, as in image=1x3x224x224:float32; may be repeated. A .pt2 file brings its own.",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="AXIS",
    help="batch: axis 0 of every input; NAME:AXIS=SYMBOL: another one; may be repeated.",
)
@click.option("--opset", type=int, help="Operator set; default: torch's choice.")
@click.option(
    "--fold",
    is_flag=True,
    help="Fold BatchNormalization and fuse, for deployment; default: a file to train on.",
)
@click.option(
    "--tolerance",
    type=float,
    default=1e-3,
    show_default=True,
    help="Largest difference from torch, in units of an output's largest value.",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def export(source: str, output: Path, fold: bool, as_json: bool, **options: Any) -> None:
    """Export a torch model to ONNX and check it against torch.

    SOURCE is module_or_file.py:factory, where the factory returns a torch.nn.Module, or a .pt2 file of torch.export.
    """
    from compressor import console, exporting

    console.print_export(exporting.export(source, output, trainable=not fold, **options), as_json)


@main.command()
@click.argument("recipe", metavar="PIPELINE|@FILE")
@click.option(
    "--samples", type=click.IntRange(1), default=10_000, show_default=True, help="Samples of an epoch."
)
@click.option("--batch", type=click.IntRange(1), help="Samples of a batch; default: that of the recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print the rate of every step as JSON.")
@_refusing
def schedule(recipe: str, samples: int, batch: int | None, as_json: bool) -> None:
    """Draw the learning rate of a recipe, as in 'finetune{schedule=one-cycle}'; nothing is trained."""
    from compressor import console, schedule_drawing

    text = _recipe(recipe) or ""
    console.print_schedule(schedule_drawing.schedule(text, samples=samples, batch=batch), as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_refusing
def doctor(as_json: bool) -> None:
    """Show versions, the providers that really load, and what to install."""
    from compressor import console, diagnosis

    console.print_diagnosis(diagnosis.doctor(), as_json)


def _target(options: dict[str, Any]) -> Target:
    from compressor.proof import Target

    given = {key: options[key] for key in ("metric", "threads", "batch", "seed") if key in options}
    return Target(providers=options.get("providers") or options.get("provider", "cpu"), **given)


def _run(options: dict[str, Any], output: Path) -> Run:
    """How a training is watched; its checkpoint lies beside the output where no folder is named."""
    from compressor.pipeline import Run

    made = _callbacks(options["callbacks"])
    return Run(made, options["log"], options["checkpoint"] or _checkpoint_beside(output), options["resume"])


def _output(model: Path, given: Path | None) -> Path:
    return given or model.with_name(f"{model.stem}.compressed.onnx")


def _checkpoint_beside(output: Path) -> Path:
    return output.with_name(f"{output.name}.checkpoint")


def _callbacks(addresses: Sequence[str]) -> list[Any]:
    """The Lightning callbacks that were named; Lightning is loaded for them alone."""
    if not addresses:
        return []
    from compressor.training.hooks import callbacks

    return callbacks(addresses)


@contextmanager
def _checkpoint(options: dict[str, Any], output: Path) -> Iterator[None]:
    """Removes the checkpoint that nobody asked for once all is done, and its folder when it is empty."""
    folder = _checkpoint_beside(output)
    try:
        yield
        if options["checkpoint"] is None:
            for file in (*folder.glob("*.ckpt"), *folder.glob("*.writing")):
                file.unlink()
    finally:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _how_to_resume(options: dict[str, Any]) -> str:
    """What goes on from the checkpoint of a training, if there is one."""
    if "resume" not in options:
        return ""
    folder = options["checkpoint"]
    if folder is None and "output" in options:
        folder = _checkpoint_beside(_output(options["model"], options["output"]))
    if folder is None or not any(folder.rglob("*.ckpt")):
        return ""
    return f" The same command with --resume goes on from the checkpoint in {str(folder)!r}."


def _limits(options: dict[str, Any]) -> Limits:
    from compressor.gate import Limits

    return Limits(options["max_drop"], options["min_speedup"], options["min_ratio"])


def _recipe(text: str | None) -> str | None:
    """The pipeline text, or what is in the file behind `@`."""
    if text is None or not text.startswith("@"):
        return text
    from compressor.errors import OptionError

    path = Path(text[1:])
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"Recipe file {str(path)!r} cannot be read: {error}.") from error


def _check_reports(paths: tuple[Path, ...]) -> None:
    from compressor.report import check_suffix

    for path in paths:
        check_suffix(path)


def _finish(report: Report, options: dict[str, Any]) -> None:
    """Write the reports and print."""
    from compressor import console

    for path in options["reports"]:
        report.write(path)
    console.print_report(report, options["as_json"], options["quiet"])
