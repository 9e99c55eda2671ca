"""Passes, what they get (Context), what they report (Change), and the text form of a Pipeline.

A pass is a frozen pydantic model: its fields are the Python constructor, the command-line options and the help
text at once. A pipeline is a tuple of passes and has a text form, the recipe:

    quantize-int8{calibration='entropy' granularity='channel'},optimize

Values are Python literals; a bare word is a string. In a recipe file passes may stand on lines of their own and
`#` starts a comment. `str(pipeline)` writes every option, so a stored recipe keeps its meaning when a default changes.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, get_origin

import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.errors import DataError, OptionError, did_you_mean
from compressor.language import read

if TYPE_CHECKING:
    from compressor.data import Samples
    from compressor.pruning.sparsity import Gradual

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, units done, units in all; 0 in all when that is unknown)."""


def silent(what: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class Run:
    """How a training is watched, and taken up again.

    Args:
        callbacks: Lightning callbacks, its hooks.
        log: a folder for the curves: CSV, and TensorBoard where it is installed.
        checkpoint: a folder for the state after every epoch.
        resume: go on from what is in that folder.
    """

    callbacks: Sequence[Any] = ()
    log: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Context:
    """What every pass may look at: data, the target, the seed. Never an option of a pass.

    Args:
        calibration: samples for activation ranges.
        data: evaluation samples.
        train: samples that weights are trained on.
        old: samples of the task that the model was trained for before, in continual learning.
        original: the model before the first pass; the teacher in distillation.
        provider: short name of the onnxruntime provider that passes work for.
        threads: intra-op threads of onnxruntime; 0 is its own choice.
        seed: of everything random.
        metric: how evaluation samples are scored; None chooses by the labels.
        progress: called with (what, done, total).
        callbacks: Lightning callbacks, the hooks of a training.
        log: a folder that gets the curves of a training; None writes none.
        workspace: a folder for checkpoints; None keeps none.
        resume: go on from the checkpoint in the workspace.
        step: the place of the running pass in its pipeline, from 0. Filled in by the pipeline.
        latents: name of stored codes -> the floats that they round. Filled in by the pipeline, from earlier passes.
        gradual: prunings that earlier passes left to the next training. Filled in by the pipeline.
    """

    calibration: Samples | None = None
    data: Samples | None = None
    train: Samples | None = None
    old: Samples | None = None
    original: ir.Model | None = None
    provider: str = "cpu"
    threads: int = 0
    seed: int = 0
    metric: str | None = None
    progress: Progress = silent
    callbacks: Sequence[Any] = ()
    log: Path | None = None
    workspace: Path | None = None
    resume: bool = False
    step: int = 0
    latents: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    gradual: tuple[Gradual, ...] = ()

    @property
    def samples(self) -> Samples | None:
        """Real samples for a comparison, whichever there are."""
        return self.calibration if self.calibration is not None else self.data


@dataclass(frozen=True)
class Change:
    """What one pass did.

    Args:
        touched: names of the nodes or initializers that were changed.
        declined: name -> why it was left as it was.
        figures: what was measured on the way, name -> number or text.
        latents: name of stored codes that the pass made -> the floats that they round, no copies. The pipeline
            hands them to later passes, and keeps none.
        recipe: the pass with every option resolved, in the text form. Filled in by the pipeline.
        seconds: wall time. Filled in by the pipeline.
        gradual: prunings that the next training is to carry out as it goes.
    """

    touched: tuple[str, ...] = ()
    declined: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float | str] = field(default_factory=dict)
    latents: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    recipe: str = ""
    seconds: float = 0.0
    gradual: tuple[Gradual, ...] = ()


class Pass(BaseModel, ABC):
    """One transformation of a model. Subclasses are final; options are fields, data comes through the Context.

    Class variables: `needs`, the data without which the pass cannot work; `opset`, the operator set that what it
    writes needs; `prepared`, whether it expects the model as `compressor.prepare` leaves it; `reshapes`, whether its
    outputs have other shapes, so that they cannot be compared with the original's; `packages`, which of the extra
    `train` it imports; `trains`, whether it trains weights, and so carries out the gradual prunings before it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str]
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ()
    opset: ClassVar[int] = 0
    prepared: ClassVar[bool] = True
    reshapes: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        fields = type(self).model_fields
        for key, value in options.items():
            if isinstance(value, str) and key in fields and get_origin(fields[key].annotation) is tuple:
                options[key] = (value,)  # one glob needs no brackets
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise OptionError(_explain(type(self), error)) from None

    def resolved(self, context: Context) -> Self:
        """This pass with every 'auto' option decided for the machine and provider of the context."""
        return self

    def check(self, context: Context) -> None:
        """Raise when the options ask for what the context or the machine lacks. Run before any pass."""
        return

    @abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Change:
        """Transform `model` in place (it is a private clone) and say what was done."""

    @property
    def defers(self) -> bool:
        """True when the pass leaves its work to the next training; there must be one behind it then."""
        return False

    @property
    def packs(self) -> bool | None:
        """Whether weights that are mostly zeros are stored without them after the last pass; None: as they came."""
        return None

    def __str__(self) -> str:
        """The pass in the text form, every option written."""
        return self._text(type(self).model_fields)

    @property
    def brief(self) -> str:
        """The pass in the text form, with the options that are not at their defaults."""
        return self._text(
            k for k, field in type(self).model_fields.items() if getattr(self, k) != field.default
        )

    def _text(self, keys: Iterable[str]) -> str:
        options = " ".join(f"{key}={getattr(self, key)!r}" for key in keys)
        return f"{self.name}{{{options}}}" if options else self.name


class Compressed(NamedTuple):
    """The result of running a pipeline: the new model, the resolved pipeline, one Change per pass."""

    model: ir.Model
    pipeline: Pipeline
    changes: tuple[Change, ...]


class Pipeline:
    """A sequence of passes.

    >>> str(Pipeline())
    ''
    """

    def __init__(self, *passes: Pass) -> None:
        for p in passes:
            if not isinstance(p, Pass):
                raise OptionError(f"Pipeline takes passes, got {p!r}. Text is read by Pipeline.parse.")
        self.passes = passes

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """The pipeline written in `text`; OptionError points at what cannot be read."""
        from compressor.discover import find

        return cls(*(find(name)(**options) for name, options in read(text)))

    def __str__(self) -> str:
        """The text form."""
        return ",".join(str(p) for p in self.passes)

    def __iter__(self) -> Iterator[Pass]:
        """The passes in order."""
        return iter(self.passes)

    def __len__(self) -> int:
        """The number of passes."""
        return len(self.passes)

    def __eq__(self, other: object) -> bool:
        """True for the same passes with the same options."""
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        """Agrees with equality."""
        return hash(self.passes)

    def check(self, context: Context) -> None:
        """Raise when a pass needs data that the context lacks, or a package. Run before anything else."""
        flags = {"calibration": "--calibration", "data": "--data", "train": "--train"}
        for step, p in enumerate(self.passes):
            if p.defers and not any(later.trains for later in self.passes[step + 1 :]):
                raise OptionError(
                    f"{p.name} prunes during the training: put finetune behind it, {p.brief},finetune."
                )
            for package in p.packages:
                if find_spec(package) is None:
                    raise OptionError(
                        f"{p.name} needs {package}, which is not installed: pip install onnx-compressor[train]"
                    )
            for need in p.needs:
                if getattr(context, need) is None:
                    raise DataError(
                        f"{p.name} needs {need} samples. Give {flags[need]} FILE.npz, or {need}=... in Python."
                    )
            p.check(context)

    def run(self, model: ir.Model, context: Context) -> Compressed:
        """Apply the passes in order to a clone of `model`, which stays as it was."""
        self.check(context)
        work = model.clone()
        unpacked = _expand(work)
        if context.original is None:
            context = replace(context, original=model)
        done: list[Pass] = []
        changes: list[Change] = []
        for step, p in enumerate(self.passes):
            if p.prepared and not any(q.prepared for q in done):
                changes.append(_timed("prepare", partial(_prepare, work, context)))
            p = p.resolved(context)
            change = _timed(str(p), partial(_apply, p, work, replace(context, step=step)))
            waiting = () if p.trains else context.gradual
            latents = {**context.latents, **change.latents}
            context = replace(context, latents=latents, gradual=(*waiting, *change.gradual))
            changes.append(replace(change, latents={}, gradual=()))
            done.append(p)
        asked = [p.packs for p in done if p.packs is not None]
        sparse = asked[-1] if asked else unpacked
        packed = _timed("low-bit storage", partial(_store_codes, work, context, sparse))
        changes += [packed] if packed.touched else []
        if sparse:
            changes.append(_timed("sparse storage", partial(_store, work, context)))
        return Compressed(work, Pipeline(*done), tuple(changes))


def _timed(recipe: str, act: Callable[[], Change]) -> Change:
    start = time.perf_counter()
    change = act()
    return replace(change, recipe=recipe, seconds=time.perf_counter() - start)


def _apply(p: Pass, model: ir.Model, context: Context) -> Change:
    from compressor.opset import upgrade

    if reason := upgrade(model, p.opset, context.samples):
        return Change(declined={"model": reason})
    context.progress(p.name, 0, 0)
    return p.apply(model, context)


def _prepare(model: ir.Model, context: Context) -> Change:
    from compressor.prepare import adopt, prepare

    context.progress("preparing", 0, 0)
    before = model.graph.num_nodes()
    found = prepare(model, context.samples)
    adopt(model, found.model)
    return Change(
        declined=found.declined, figures={"nodes before": before, "nodes after": model.graph.num_nodes()}
    )


def _expand(model: ir.Model) -> bool:
    """Unpack what an earlier pipeline packed; True when weights were stored without their zeros."""
    from compressor import sparse_storage
    from compressor.low_bit import expanding

    unpacked = sparse_storage.expand(model)
    expanding.expand(model)
    return unpacked


def _store_codes(model: ir.Model, context: Context, sparse: bool) -> Change:
    from compressor.low_bit.storage import store

    return store(model, context, sparse)


def _store(model: ir.Model, context: Context) -> Change:
    from compressor.opset import upgrade
    from compressor.sparse_storage import OPSET, store, worthwhile

    if not worthwhile(model):
        return Change(
            declined={"model": "no weight is smaller as a bitmask and its values that are not zero"}
        )
    if reason := upgrade(model, OPSET, context.samples):
        return Change(declined={"model": reason})
    return store(model)


def _explain(cls: type[Pass], error: ValidationError) -> str:
    """The first problem of a pydantic error in our own words."""
    first = error.errors()[0]
    option = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        known = cls.model_fields
        hint = did_you_mean(option, known) if known else "It has no options."
        return f"{cls.name}: no option {option!r}. {hint}"
    if first["type"] == "literal_error" and error.error_count() == 1:
        return f"{cls.name}: option {option!r} must be one of {first['ctx']['expected']}, got {first['input']!r}."
    said = [_said(e["msg"]) for e in error.errors() if e["loc"][:1] == first["loc"][:1]]
    if not option:
        return f"{cls.name}: {said[0]}."
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{cls.name}: option {option!r} is required; it has no default."
    return (
        f"{cls.name}: option {option!r} must be {' or '.join(dict.fromkeys(said))}, got {first['input']!r}."
    )


def _said(message: str) -> str:
    said = message.removeprefix("Value error, ").removeprefix("Input should be ").rstrip(".")
    sized = re.fullmatch(r"(Tuple|List) should have (at \w+ \d+ items?) after validation, not \d+", said)
    return f"a {sized[1].lower()} of {sized[2]}" if sized else said
