"""Few bits per weight in a sentence encoder: what is lost without training, and after distillation without labels.

    python benchmarks/low_bit_sentences.py untrained --zoo FOLDER [--only NAME ...]
    python benchmarks/low_bit_sentences.py trained --zoo FOLDER [--only NAME ...]

FOLDER has manifest.json, models and data/stsb_tokens.npz: the tokens of STS-B sentences. Training and calibration see
the sentences of its `train` and `dev` parts that do not occur in `test`, without their scores, and in training as many
texts again, times `--splices`, made of the beginning of one and the end of another: the teacher answers to any text.
Each has its own length and a batch holds texts of one length, so that nothing is padding. A tenth of the sentences is
held out to choose the epoch by the cosine with the original's embeddings. The score is Spearman's correlation between
the cosines of the pairs of `test` and their labels; its drop is paired with the float model, with the 95 % interval.
Latency is against the float file (one thread, thread CPU time, interleaved in one run), 8 sentences of 16 tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from compressor import Context, Pipeline, load, metrics, save
from compressor.data import DataOptions, Samples
from compressor.data.inputs import model_inputs
from compressor.data.stream import Stream
from compressor.errors import CompressorError
from compressor.latency import measure
from compressor.measurement import outputs_on
from compressor.metrics.scores import cosines
from compressor.runtime import Setup

NAME = "minilm_l6_v2_embed_smallvocab"
DYNAMIC = "quantize-dynamic"
FOUR, TERNARY = "quantize-weights{bits=4 %s}", "quantize-ternary{activations=float %s}"
UNTRAINED = {
    "int8": DYNAMIC,
    "4 bits": FOUR % "",
    "4 bits, gptq": FOUR % "reconstruct=gptq",
    "4 bits, gptq, blocks of 32": FOUR % "reconstruct=gptq block=32",
    "4 bits, gptq, blocks of 64": FOUR % "reconstruct=gptq block=64",
    "4 bits, gptq, int8 activations": f"{FOUR % 'reconstruct=gptq'},{DYNAMIC}",
    "3 bits, gptq": "quantize-weights{bits=3 reconstruct=gptq}",
    "ternary": TERNARY % "",
    "ternary, gptq": TERNARY % "reconstruct=gptq",
    "ternary, gptq, blocks of 32": TERNARY % "reconstruct=gptq block=32",
    "ternary, gptq, blocks of 64": TERNARY % "reconstruct=gptq block=64",
    "ternary, gptq, int8 activations": f"{TERNARY % 'reconstruct=gptq'},{DYNAMIC}",
}
TRAIN = (
    "finetune{epochs=%d batch=16 lr=5e-4 weight_decay=0 precision=bf16 "
    "freeze=['word.weight','pos.weight','tt'] features=['layer_norm_2','layer_norm_4','layer_norm_6',"
    "'layer_norm_8','layer_norm_10','layer_norm_12']}"
)
"""The blocks' outputs are matched beside the embeddings; the tables stay, of which few rows would see a gradient."""
TRAINED = {"ternary, trained": f"{TERNARY % 'reconstruct=gptq'},{TRAIN}"}
BEHIND = {
    "ternary, trained, int8 activations": DYNAMIC,
    "ternary, trained, int8 activations, 4-bit table": f"quantize-weights{{bits=4 ops=['Gather']}},{DYNAMIC}",
}
"""What is done to the model that `trained` gives, without training it again."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["untrained", "trained"])
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="for `untrained`: rows, by name")
    parser.add_argument("--recipe", help="one pipeline in its text form instead of the rows")
    parser.add_argument("--from", dest="start", type=Path, help="a model to start from instead of the zoo's")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=256, help="calibration sentences")
    parser.add_argument("--splices", type=int, default=7, help="made-up texts per training sentence")
    parser.add_argument("--limit", type=int, default=0, help="training texts; 0: all")
    parser.add_argument("--held-out-only", action="store_true", help="leave the test pairs alone")
    parser.add_argument("--keep", type=Path, help="a folder for the models")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in measured(recipes(given), given, given.keep or Path(folder)):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def recipes(given: argparse.Namespace) -> dict[str, str]:
    """Name of a row -> its pipeline; one of `BEHIND` goes on from the model of the row before."""
    if given.recipe:
        return {given.recipe: given.recipe}
    if given.what == "trained":
        return {name: recipe % given.epochs for name, recipe in TRAINED.items()} | BEHIND
    return {name: recipe for name, recipe in UNTRAINED.items() if not given.only or name in given.only}


def measured(chosen: dict[str, str], given: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """One row per pipeline."""
    model = load(given.zoo / "models" / f"{NAME}.onnx")
    pool, pairs, labels = sentences(given.zoo)
    train, held = parted(pool)
    texts = [*train, *spliced(train, given.splices * len(train))][-given.limit :]
    context = Context(
        calibration=opened(train[: given.calibration], model, "calibration"),
        train=opened(texts, model, "train"),
        data=opened(held, model, "data"),
        original=model,
        seed=0,
        threads=1,
        progress=said,
    )
    before, tested = embedded(model, held), similar(model, pairs)
    original = folder / "float.onnx"
    save(model, original)
    trained = start = load(given.start) if given.start else model
    for number, (name, recipe) in enumerate(chosen.items()):
        began = time.process_time()
        try:
            made = Pipeline.parse(recipe).run(trained if name in BEHIND else start, context)
        except CompressorError as error:
            yield {"kind": name, "failed": str(error)}
            continue
        trained = made.model if name in TRAINED else trained
        row: dict[str, Any] = {"kind": name, "CPU s": round(time.process_time() - began)}
        row["cosine"] = float(cosines(before, embedded(made.model, held)).mean())
        if not given.held_out_only:
            found = metrics.compare("spearman", [tested], [similar(made.model, pairs)], labels)
            row["spearman"] = found.after.value if found.after else None
            row["drop"] = [round(100 * x, 2) for x in (found.drop.value, found.drop.low, found.drop.high)]
        row |= cost(made.model, folder / f"{number}.onnx", original)
        row["figures"] = {k: v for change in made.changes for k, v in change.figures.items()}
        yield row


def cost(model: ir.Model, file: Path, original: Path) -> dict[str, Any]:
    """Bytes of the model in its file, and how many times as fast as the original it is."""
    save(model, file)
    ratio = measure([original, file], feeds(), Setup(threads=1)).ratios[0]
    size = file.stat().st_size
    return {
        "bytes": size,
        "smaller": round(original.stat().st_size / size, 2),
        "x float": [round(x, 2) for x in (ratio.value, ratio.low, ratio.high)],
    }


def sentences(zoo: Path) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Sentences without labels; those of the test pairs, the first ones, then the second ones; the pairs' scores."""
    with np.load(zoo / "data" / "stsb_tokens.npz") as stored:
        remap = stored["small_vocab_remap"].astype(np.int64)
        parts = {p: np.concatenate([stored[f"{p}_a"], stored[f"{p}_b"]]) for p in ("train", "dev", "test")}
        scores = stored["test_score"]
    test = [remap[row[row > 0]] for row in parts["test"]]
    known = {row.tobytes() for row in test}
    pool: dict[bytes, np.ndarray] = {}
    for row in np.concatenate([parts["train"], parts["dev"]]):
        ids = remap[row[row > 0]]
        if ids.tobytes() not in known:
            pool[ids.tobytes()] = ids
    return list(pool.values()), test, scores


def parted(pool: Sequence[np.ndarray], share: float = 0.1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What is trained on, in a random order, and what is held out."""
    order = np.random.default_rng(0).permutation(len(pool))
    held = round(share * len(pool))
    return [pool[i] for i in order[held:]], [pool[i] for i in order[:held]]


def spliced(rows: Sequence[np.ndarray], count: int, longest: int = 32) -> list[np.ndarray]:
    """New texts: the beginning of one sentence and the end of another; the teacher answers to any text."""
    draw = np.random.default_rng(1)
    found: list[np.ndarray] = []
    while len(found) < count:
        first, second = (rows[i] for i in draw.integers(len(rows), size=2))
        head, tail = first[: draw.integers(2, len(first))], second[draw.integers(1, len(second) - 1) :]
        if 5 <= len(head) + len(tail) <= longest:
            found.append(np.concatenate([head, tail]))
    return found


def opened(rows: Sequence[np.ndarray], model: ir.Model, what: str) -> Samples:
    """Sentences as samples of their own lengths, the short ones first, so that batches are full."""
    specs = model_inputs(model)
    ordered = sorted(rows, key=len)

    def each() -> Iterator[dict[str, np.ndarray]]:
        for ids in ordered:
            yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    return Samples(f"{len(rows)} sentences", specs, Stream(what, each, specs, None), DataOptions(), what)


def embedded(model: ir.Model, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The embedding of each sentence [n, 384]."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    made = outputs_on(model, opened(rows, model, "data"), Setup(threads=1))[0]
    found = np.empty_like(made)
    found[order] = made
    return found


def similar(model: ir.Model, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """The cosine of the two sentences of each pair [n, 1]."""
    first, second = np.split(embedded(model, pairs).astype(np.float64), 2)
    return cosines(first, second)[:, None]


def feeds() -> dict[str, np.ndarray]:
    """Eight sentences of 16 tokens."""
    ids = np.random.default_rng(0).integers(1, 8000, (8, 16))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def said(what: str, done: int, total: int) -> None:
    """Progress, where standard error is read."""
    print(f"{time.strftime('%X')} {what} {done}/{total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
