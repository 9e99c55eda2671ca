"""Training a model from beginning to end: everything that is needed is made, fitted, and written back."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import torch
from torch import fx

from compressor.data import Samples, open_samples
from compressor.errors import DataError, ModelError
from compressor.pipeline import Change, Context
from compressor.prepare import adopt
from compressor.torch_graph import write_back
from compressor.torch_graph.own_statistics import separate
from compressor.torch_graph.writing import NAMES
from compressor.training import callbacks, continual, gradual, probing, reporting
from compressor.training.augmentation import augmenter
from compressor.training.batch_axis import free_batch
from compressor.training.bench import Bench, set_up
from compressor.training.bounds import output_axes
from compressor.training.checkpoints import checkpoint_file
from compressor.training.composing import compose
from compressor.training.depths import layer_depths, layer_weights
from compressor.training.exposing import shared
from compressor.training.freezing import frozen
from compressor.training.loading import Loader, loader, open_source
from compressor.training.optimizers import optimizer, parameter_groups
from compressor.training.options import Training
from compressor.training.progression import Progression
from compressor.training.projections import encoded, projections
from compressor.training.recalibration import recalibrate
from compressor.training.replaying import replayed
from compressor.training.schedules import plateau
from compressor.training.scoring import Scorer, evaluated
from compressor.training.sources import Source
from compressor.training.student import Student
from compressor.training.teacher import Teacher
from compressor.training.trainer import run
from compressor.training.unfolding import estimate
from compressor.training.working_copy import working_copy

_NOTHING = (
    "it has no floating-point weights to train; integer weights of a quantized model train behind "
    "DequantizeLinear"
)


def fit(model: ir.Model, options: Training, context: Context) -> Change:
    """Train `model` in place.

    Raises:
        DataError: no training data, labels that do not fit, a loss that is no number at the first step.
        ModelError: an operator on the way has no gradient.
        OptionError: an option that does not fit the model or the data.
    """
    if context.train is None:
        raise DataError(f"{options.name} needs train samples. Give --train FILE.npz, or train=... in Python.")
    _require_tensors(model, options)
    checkpoint = checkpoint_file(model, options, context)
    separate(model)
    copy = working_copy(model, options, context.latents)
    context = _fitted(context, copy.model)
    original = free_batch(context.original if context.original is not None else model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        bench = set_up(copy, options, context)
        if not bench.parameters:
            return Change(declined={"model": _NOTHING})
        old = continual.OldTask.opened(context, options, free_batch(copy.source), original)
        student, before = _student(bench, options, context, original)
        figures = old.score(bench, "before") if old else {}
        pruning = gradual.Pruning(bench.network, context.gradual, options) if context.gradual else None
        constraints = _constraints(bench, options, student)
        steps = [*filter(None, [pruning]), *_progression(bench, options)]
        hooks = [*steps, *constraints, _keeper(student, before, pruning is not None)]
        run(student, bench.machine, options, context, hooks, checkpoint)
        figures |= old.score(bench, "after") if old else {}
    network = student.network.cpu()
    finished = copy.finished(write_back(network, copy.model), encoded(network, network.meta[NAMES]))
    touched = reporting.changed(model, finished)
    adopt(model, finished)
    figures = reporting.figures(student, context, before) | figures
    if bench.masked:
        figures["weights kept at zero"] = len(bench.masked)
    declined = reporting.declined(student)
    if pruning is not None:
        figures |= pruning.figures()
        declined |= pruning.left_out(bool(student.outcome["best_epoch"]))
    return Change(touched, declined, figures)


def _require_tensors(model: ir.Model, options: Training) -> None:
    """Refuse sequences and optionals: no loss and no score is made for them."""
    for output in model.graph.outputs:
        if output.type is not None and not isinstance(output.type, ir.TensorType):
            raise ModelError(
                f"{options.name}: output {output.name!r} is {output.type}, and only tensors have a loss. Remove that "
                "output from the model."
            )


def _fitted(context: Context, model: ir.Model) -> Context:
    """The context with its samples opened for the form of the model that is trained; its batch may have been freed."""

    def opened(samples: Samples | None, what: str) -> Samples | None:
        return None if samples is None else open_samples(samples, model, what)

    train, data, old = context.train, context.data, context.old
    return replace(context, train=opened(train, "train"), data=opened(data, "data"), old=opened(old, "old"))


def _progression(bench: Bench, options: Training) -> list[Progression]:
    """The callback that puts codes of few bits into force on the way; none where all have them at once."""
    wanted = options.progressive != "none" and bool(projections(bench.network))
    return [Progression(bench.network, options)] if wanted else []


def _keeper(student: Student, before: float, trained_only: bool) -> callbacks.Keeper:
    """The callback that holds the best weights; averaged ones need their own statistics of BatchNormalization."""
    options, loader = student.options, student.loader

    def settle(network: fx.GraphModule) -> None:
        recalibrate(network, (batch.inputs for batch in loader.batches(0)))

    averaged = options.average == "swa" and options.batchnorm != "frozen"
    higher = student.scorer.higher_is_better
    return callbacks.Keeper(options, higher, before, settle if averaged else None, trained_only)


def _student(bench: Bench, options: Training, context: Context, original: ir.Model) -> tuple[Student, float]:
    """The Lightning module with its optimizer, and the score before training."""
    network, device = bench.network.to(bench.machine.device), bench.machine.device
    source = open_source(bench.train)
    depths = layer_depths(bench.copy.model)
    held = frozen(list(bench.parameters), options, depths)
    for name in held:
        bench.parameters[name].requires_grad_(False)
    if options.batch == "auto":
        options = options.model_copy(update={"batch": probing.largest_batch(network, source, device)})
    batches = _loader(source, options, context, bench)
    first = next(batches.batches(0))
    if bench.copy.restored:
        estimate(
            network, bench.copy.restored, (b.inputs for b in loader(source, int(options.batch)).batches(0))
        )
    terms, teacher, classes = compose(bench, options, context, original, first, len(batches.source.shapes))
    changes = augmenter(options.augment, bench.train.specs, context.seed, classes)
    made = {
        "teacher": teacher,
        "augmenter": changes,
        "outputs": bench.copy.outputs,
        "values": _matched(bench, options, teacher),
        "seed": context.seed,
    }
    scorer = Scorer(bench.evaluation, free_batch(bench.copy.source), original, context.metric)
    student = Student(network, options, terms, batches, scorer, **made)  # type: ignore[arg-type]
    score = evaluated(network, scorer, 64, device, bench.copy.outputs)
    groups = parameter_groups(bench.parameters, options, depths, layer_weights(bench.copy.model))
    if options.lr == "auto":
        rate = probing.rate(student, groups, optimizer(options, groups), batches)
        options = options.model_copy(update={"lr": rate})
        student.options = options
        groups = parameter_groups(bench.parameters, options, depths, layer_weights(bench.copy.model))
    made_optimizer = optimizer(options, groups)
    per_epoch = -(-len(batches) // options.accumulate)
    steps = per_epoch * options.epochs
    schedule = gradual.schedule(context.gradual, options, made_optimizer, steps, per_epoch)
    student.optimizer_made = (made_optimizer, [{"scheduler": schedule, "interval": "step"}])
    return student, score


def _matched(bench: Bench, options: Training, teacher: Teacher | None) -> dict[str, int]:
    """The values that are matched with the teacher's, each name -> its place among the outputs."""
    globs = (*options.features, *options.attention)
    return {} if teacher is None else shared(bench.copy.values, teacher.values, globs)


def _loader(source: Source, options: Training, context: Context, bench: Bench) -> Loader:
    """The batches, with a share of old samples where replay asks for it."""
    made = loader(source, int(options.batch), shuffle=options.shuffle, seed=context.seed)
    made.pin = bench.machine.device.type == "cuda"
    processes = options.devices * options.nodes
    if len(made) < processes:
        raise DataError(
            f"{options.name}: {len(made)} batches cannot be shared by {processes} processes. Give a smaller batch."
        )
    made.shard = (0, processes)
    if options.replay:
        old = continual.require_old(context, options)
        made = replayed(made, open_source(old), options.replay)
    return made


def _constraints(bench: Bench, options: Training, student: Student) -> list[object]:
    """The callbacks that the options ask for."""
    found: list[object] = []
    if options.max_norm:
        found.append(
            callbacks.MaxNorm(output_axes(bench.network, bench.copy.model, options), options.max_norm)
        )
    if options.batchnorm == "frozen":
        found.append(callbacks.FrozenStatistics())
    held = {name: p for name, p in bench.parameters.items() if not p.requires_grad}
    if options.unfreeze and held:
        found.append(callbacks.Unfreezing(options, layer_depths(bench.copy.model), held))
    if options.schedule == "plateau" and student.optimizer_made:
        higher = student.scorer.higher_is_better
        found.append(callbacks.Plateau(plateau(student.options, student.optimizer_made[0], higher)))
    return found
