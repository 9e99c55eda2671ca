"""What training wins back, on the user's own file: after weights or channels are cut, and after plain int8.

    python benchmarks/recovery.py prune MODEL.onnx TRAIN.npz TEST.npz [--sparsity 0.8] [--epochs 2] [--lr 0.003]
    python benchmarks/recovery.py int8 MODEL.onnx TRAIN.npz TEST.npz [--granularity tensor] [--epochs 2] [--lr 1e-4]
    python benchmarks/recovery.py recipe MODEL.onnx TRAIN.npz TEST.npz --recipe PIPELINE [--start FILE] [--save FILE]

`prune` sets the weights that matter least by magnitude to zero (LAMP, a helper of this file, no pass), then fine-tunes
once on the labels and the original's answers (distill=0.7), and once without labels. `int8` quantizes as plainly as
other tools do (ranges by minmax, no bias correction), then trains the quantized graph: quantization-aware training.
`recipe` runs any pipeline, with 512 of the training samples for its calibration; with `--start` on what an earlier run
saved, MODEL still being the original and the teacher.
Scores are top-1 on TEST with the paired 95 % interval of the drop; no gradient and no epoch is taken from TEST.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compressor import Context, Pipeline, load, metrics, open_samples, save
from compressor.data import Samples
from compressor.measurement import outputs_on
from compressor.runtime import Setup

PLAIN = "quantize-int8{calibration=minmax bias_correction=False granularity=%s}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["prune", "int8", "recipe"])
    parser.add_argument("model", type=Path)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument(
        "--granularity", choices=["channel", "tensor"], default="channel", help="one weight step per which"
    )
    parser.add_argument("--recipe", default="", help="for `recipe`: a pipeline in its text form")
    parser.add_argument("--start", type=Path, help="for `recipe`: the file that the pipeline starts from")
    parser.add_argument("--save", type=Path, help="where the last result goes")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--options", default="", help="further options of finetune, in its text form")
    parser.add_argument("--only", help="one row, by its name")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = load(given.model)
    train, test = open_samples(given.train, model, "train"), open_samples(given.test, model, "data")
    before = outputs_on(model, test, Setup())
    rows = []
    for name, start, recipe in variants(given, model):
        if given.only not in (None, name):
            continue
        began = time.perf_counter()
        context = Context(train=train, calibration=train.take(512), original=model, seed=0)
        made = Pipeline.parse(recipe).run(start, context) if recipe else None
        result = start if made is None else made.model
        rows.append(row(name, before, result, test, time.perf_counter() - began, made))
        print(json.dumps(rows[-1]), flush=True)
        if given.save:
            save(result, given.save)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def variants(given: argparse.Namespace, model: ir.Model) -> list[tuple[str, ir.Model, str]]:
    """(name, the model to start from, the pipeline) of each row."""
    if given.what == "recipe":
        return [(given.recipe, load(given.start) if given.start else model, given.recipe)]
    if given.what == "prune":
        cut = pruned(model, given.sparsity)
        options = f"batch=32 batchnorm='restore' temperature=4.0 {given.options}"
        train = f"finetune{{epochs={given.epochs} lr={given.lr or 0.003} {options}"
        return [
            ("cut", cut, ""),
            ("labels and original", cut, f"{train} distill=0.7}}"),
            ("original alone", cut, f"{train} distill=1.0}}"),
        ]
    train = f"finetune{{epochs={given.epochs} lr={given.lr or 1e-4} {given.options}}}"
    plain = PLAIN % given.granularity
    return [("plain int8", model, plain), ("trained int8", model, f"{plain},{train}")]


def pruned(model: ir.Model, sparsity: float) -> ir.Model:
    """A copy in which `sparsity` of all weights of two axes or more are zero, those that matter least by magnitude.

    Layers are made comparable by LAMP (Lee et al. 2021, arXiv:2010.07611, eq. 3): w^2 over the sum of all squares in
    its layer that are not smaller.
    """
    copy = model.clone()
    weights = [
        v for v in copy.graph.initializers.values() if v.const_value is not None and len(v.shape or ()) > 1
    ]
    arrays = {value: value.const_value.numpy() for value in weights if value.dtype == ir.DataType.FLOAT}
    scores = {value: lamp(array) for value, array in arrays.items()}
    limit = np.quantile(np.concatenate([score.ravel() for score in scores.values()]), sparsity)
    for value, array in arrays.items():
        value.const_value = ir.tensor(np.where(scores[value] > limit, array, np.float32(0)), name=value.name)
    return copy


def lamp(array: np.ndarray) -> np.ndarray:
    """The LAMP score of each weight of a layer."""
    squares = np.square(array.astype(np.float64)).ravel()
    order = np.argsort(-squares)
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.cumsum(squares[order])
    found: np.ndarray = scores.reshape(array.shape)
    return found


def row(
    name: str, before: list[np.ndarray], model: ir.Model, test: Samples, seconds: float, made: object
) -> dict[str, object]:
    """One line of the table."""
    after = outputs_on(model, test, Setup())
    found = metrics.compare("top1", before, after, test.labels)
    figures = made.changes[-1].figures if made is not None else {}  # type: ignore[attr-defined]
    drop = found.drop
    return {
        "what": name,
        "original": found.before.value if found.before else None,
        "score": found.after.value if found.after else None,
        "drop in points": [round(100 * x, 2) for x in (drop.value, drop.low, drop.high)],
        "samples": len(test),
        "seconds": round(seconds),
        "samples per second": figures.get("samples per second"),
    }


if __name__ == "__main__":
    main()
