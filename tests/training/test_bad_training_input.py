"""What cannot be trained, or not so, gets one line that says who, what, what was given and what to do."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl

from compressor.data import open_samples
from compressor.errors import CompressorError
from compressor.pipeline import Change, Context, Pipeline
from tests.conftest import MLP, build, drawn

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
X = drawn(40, 4, seed=1)
Y = np.arange(40) % 3
LINEAR = "g (float[{}, 4] x) => (float[{}, 3] y) {{ y = MatMul(x, w) }}"
NORMED = "g (float[N, 4] x) => (float[N, 3] y) { h = MatMul(x, w) y = BatchNormalization(h, s, b, m, v) }"
ENDS_IN_CLASSES = (
    "g (float[N, 4] x) => (int64[N] y) { h = MatMul(x, w) y = ArgMax <axis = 1, keepdims = 0> (h) }"
)
COUNTED = """g (float[N, 4] x) => (float[N, 3] y) {
  h = MatMul(x, w)  i = Cast <to = 6> (h)
  y = TfIdfVectorizer <mode = "TF", min_gram_length = 1, max_gram_length = 1, max_skip_count = 0, ngram_counts = [0],
                       ngram_indexes = [0, 1, 2], pool_int64s = [0, 1, 2]> (i) }"""
SEQUENCE = "g (float[N, 4] x) => (seq(float[N, 3]) y) { h = MatMul(x, w) y = SequenceConstruct(h, h) }"
ONE_BATCH_ONLY = """g (float[8, 4] x) => (float[8, 3] y) {
  h = MatMul(x, w)  a = Constant <value = int64[2] {2, 12}> ()  f = Reshape(h, a)  k = Softmax(f)
  b = Constant <value = int64[2] {8, 3}> ()  y = Reshape(k, b) }"""
INTEGERS = """g (uint8[N, 4] x) => (uint8[N, 3] y) {
  y = QLinearMatMul(x, xs, xz, q, ws, wz, xs, xz) }"""
QUANTIZED = {
    "xs": np.float32(0.1),
    "xz": np.uint8(3),
    "q": np.ones((4, 3), np.uint8),
    "ws": np.float32(0.1),
    "wz": np.uint8(0),
}
STATISTICS = {
    "s": np.ones(3, np.float32),
    "b": np.zeros(3, np.float32),
    "m": np.zeros(3, np.float32),
    "v": np.ones(3, np.float32),
}


def mlp(**changed: np.ndarray) -> ir.Model:
    weights = {"w1": drawn(4, 8), "b1": drawn(8), "w2": drawn(8, 3), "b2": drawn(3)}
    return ir.from_proto(build(MLP, **(weights | changed)))


def made(text: str, **weights: np.ndarray) -> ir.Model:
    return ir.from_proto(build(HEAD + text, **({"w": drawn(4, 3)} | weights)))


def train(
    options: str = "", model: ir.Model | None = None, train: dict[str, Any] | None = None, **more: Any
) -> Change:
    model = model or mlp()
    samples = open_samples({"x": X, "labels": Y} if train is None else train, model, "train")
    context = Context(train=samples, **more)
    return Pipeline.parse(f"finetune{{epochs=1 {options}}}").run(model, context).changes[-1]


def refused(*args: Any, **more: Any) -> str:
    """The one line of the refusal."""
    with pytest.raises(CompressorError) as caught:
        train(*args, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def at(row: int, value: float) -> np.ndarray:
    return np.where(np.arange(40) == row, value, Y)


def test_training_needs_data() -> None:
    with pytest.raises(
        CompressorError, match=r"^finetune needs train samples. Give --train FILE.npz, or train="
    ):
        Pipeline.parse("finetune").run(mlp(), Context())


@pytest.mark.parametrize(
    ("options", "labels", "said"),
    [
        ("loss=cross-entropy", None, "loss='cross-entropy' needs labels, and the training data has none. Give"),
        ("distill=0.5", None, "loss='auto' needs labels, and the training data has none. Give labels, or distill=1."),
        ("class_weights=balanced", None, "class_weights='balanced' is of the loss on labels, but the training data"),
        ("", at(7, 5).astype(int), "label 5 in row 7, but the model has 3 classes, 0 to 2"),
        ("", at(39, -1).astype(int), "label -1 in row 39, but the model has 3 classes, 0 to 2"),
        ("loss=cross-entropy", at(7, 0.5), "label 0.5 in row 7, but the model has 3 classes"),
        ("", Y + 0.5, "No loss fits labels [40] and an output [32, 3]: give class ids, or numbers of the output's"),
        ("", np.zeros((40, 2), int), "No loss fits labels [40, 2] and an output [32, 3]"),
        ("loss=mse", Y, "loss 'mse': labels [] per sample do not fit an output [3]; give numbers of that shape."),
        ("", np.array(["a", "b"] * 20), "are <U1, not numbers. Give the numbers of the model's classes"),
        ("", np.where(np.eye(40, 3), np.nan, 0), "'labels' holds NaN or infinite values in 3 of 40 rows"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_named(options: str, labels: np.ndarray | None, said: str) -> None:
    data = {"x": X} if labels is None else {"x": X, "labels": labels}
    assert said in refused(options, train=data)


def test_a_bad_label_has_the_number_of_its_row_wherever_it_is_dealt() -> None:
    texts = [refused(train={"x": X, "labels": at(row, 9).astype(int)}) for row in range(0, 40, 3)]
    assert [int(text.partition("in row ")[2].partition(",")[0]) for text in texts] == list(range(0, 40, 3))


def test_samples_that_are_not_finite_are_counted_and_numbered() -> None:
    spoilt = X.copy()
    spoilt[3, 2], spoilt[9, 0] = np.nan, np.inf
    text = refused(train={"x": spoilt, "labels": Y})
    assert text.startswith(
        "train: 'x' holds NaN or infinite values in 2 of 40 rows, counted from 0: 3, 9. Mend them"
    )


def test_a_loss_that_is_nan_at_the_first_step_names_the_tensor() -> None:
    assert (
        refused(model=mlp(w2=np.full((8, 3), np.nan, np.float32)))
        == "finetune: the model gives NaN before it is trained: the parameter 'w2' holds NaN. Look at this tensor."
    )
    huge = refused(model=mlp(w2=np.full((8, 3), 1e38, np.float32)))
    assert huge.startswith("finetune: the loss is NaN at step 1: the value ")
    assert huge.endswith("is the first that is not finite (infinity). Look at this tensor, or lower lr.")


@pytest.mark.parametrize("options", ["lr=1e30 batch=36", "lr=1e30 batch=36 keep=last", "lr=1e30 batch=8"])
def test_a_training_that_goes_astray_keeps_the_last_good_weights(options: str) -> None:
    done = train(options)
    assert "the weights are those of the epochs before" in done.declined["training"]
    assert done.figures["score after"] == done.figures["score before"]
    assert done.touched == ()


@pytest.mark.parametrize(("text", "node"), [(ENDS_IN_CLASSES, "arg_max"), (COUNTED, "cast")])
def test_a_node_that_stops_the_gradient_is_named(text: str, node: str) -> None:
    said = refused(model=made(text), train={"x": X, "labels": Y if node == "arg_max" else drawn(40, 3)})
    assert said.startswith(
        f"finetune: no gradient reaches the weights: node {node!r} passes none. Cut the model"
    )


def test_sequences_are_refused() -> None:
    said = refused(model=made(SEQUENCE))
    assert said == (
        "finetune: output 'y' is Sequence(Tensor(FLOAT)), and only tensors have a loss. Remove that output from the "
        "model."
    )


@pytest.mark.parametrize("text", ["g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", INTEGERS])
def test_a_model_without_float_weights_is_left_alone(text: str) -> None:
    model = made(text, **QUANTIZED) if text == INTEGERS else ir.from_proto(build(HEAD + text))
    x = X if text != INTEGERS else np.ones((40, 4), np.uint8)
    done = train(model=model, train={"x": x, "labels": Y})
    assert "no floating-point weights to train" in done.declined["model"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("optimizer=sdg", "no optimizer 'sdg'. Did you mean 'sgd'?"),
        ("optimizer='torch.optim:Adm'", "no optimizer 'Adm' in 'torch.optim'. Did you mean 'Adam'?"),
        ("optimizer_options={'foo': 1}", "optimizer='adamw' has no argument 'foo'. Known: "),
        ("schedule=cosin", "option 'schedule' must be one of 'constant'"),
        ("loss=cross_entropy", "no loss 'cross_entropy'. Did you mean 'cross-entropy'?"),
        ("loss='nowhere.py:f'", "loss 'nowhere.py:f': there is no file 'nowhere.py'."),
        ("augment={'flop': 1}", "augment has no 'flop'. Did you mean 'flip'?"),
        ("augment={'flip': 1}", "augment needs an image input"),
        ("freeze='w3'", "freeze='w3' matches no parameter. Known: b1, b2, w1, w2."),
        ("lr_for={'w3': 2}", "lr_for='w3' matches no parameter"),
        ("initialize={'w3': 'he'}", "initialize='w3' matches no initializer"),
        ("features='hh'", "No value of the graph matches 'hh'. Did you mean 'h'?"),
        ("attention='nope'", "No value of the graph matches 'nope'. Known: h, r, y."),
        ("nope=3", "no option 'nope'. Did you mean 'nodes'?"),
        ("batch=0", "option 'batch' must be greater than or equal to 1 or 'auto', got 0."),
        ("lr=0", "option 'lr' must be greater than 0 or 'auto', got 0."),
        ("holdout=0.99", "holdout=0.99 of 40 samples leaves none to train on."),
        ("warmup=1000", "warmup=1000 leaves none of the 2 steps of the training."),
        ("cycles=9 schedule=cosine-restarts", "cycles=9 does not fit into 2 steps."),
        ("freeze='*'", "leave nothing to train: all 4 parameters are frozen."),
        ("unfreeze=0.5", "unfreeze=0.5 has nothing to release. Give freeze or freeze_depth."),
        ("nesterov=True", "nesterov is of sgd, got optimizer='adamw'."),
        ("distill=1 loss=mse", "loss='mse' is of the loss on labels, but distill=1 leaves it no share. Leave it"),
        ("distill=1 label_smoothing=0.1", "label_smoothing=0.1 is of the loss on labels, but distill=1 leaves"),
        ("loss=('mse', 'mse')", "loss has 2 names, but the model 1 outputs."),
        ("loss_weights=(0.0,)", "loss_weights are all 0, so that nothing is trained."),
        ("class_weights=(1, 2)", "class_weights=(1.0, 2.0) has 2 numbers, and the model has 3 classes."),
        ("replay=0.5", "replay and ewc need old samples. Give --old FILE.npz, or old=... in Python."),
        ("ewc=1", "replay and ewc need old samples."),
        ("device=tpu", "no device 'tpu'. Give cpu, cuda, cuda:0, ... or auto."),
        ("strategy=fsdp device=cpu", "strategy='fsdp' needs CUDA devices. Give strategy='ddp'."),
        ("precision='16' device=cpu", "precision='16' needs CUDA. Give 'bf16' or '32'."),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_with_a_way_out(options: str, said: str) -> None:
    assert said in refused(options)


def test_training_for_no_epoch_is_refused() -> None:
    with pytest.raises(
        CompressorError, match=r"finetune: option 'epochs' must be greater than or equal to 1, got 0"
    ):
        Pipeline.parse("finetune{epochs=0}")


def test_a_batch_larger_than_the_data_is_all_of_the_data() -> None:
    assert train("batch=1000").figures["steps"] == 1


def test_one_sample_cannot_be_divided_but_can_be_trained_on() -> None:
    one = {"x": X[:1], "labels": Y[:1]}
    assert refused(train=one).startswith(
        "holdout=0.1 of 1 samples leaves none to train on. Give more samples, or"
    )
    done = train("holdout=0", train=one)
    assert (done.figures["steps"], done.figures["scored on"]) == (1, "training samples")


def test_of_two_samples_one_is_trained_on() -> None:
    done = train(train={"x": X[:2], "labels": Y[:2]})
    assert (done.figures["steps"], done.figures["scored on"]) == (1, "held-out training samples")


def test_normalization_cannot_be_trained_on_one_sample() -> None:
    said = refused("batch=1", model=made(NORMED, **STATISTICS))
    assert said.startswith(
        "BatchNormalization cannot train on a batch with one value per channel (shape [1, 3])"
    )


@pytest.mark.parametrize("size", [1, 8])
def test_a_batch_that_the_file_fixes_is_no_hindrance(size: int) -> None:
    done = train(model=made(LINEAR.format(size, size)), train={"x": X[:9], "labels": Y[:9]})
    assert done.figures["steps"] == 1


def test_a_batch_that_cannot_be_freed_must_be_filled() -> None:
    assert train(model=made(ONE_BATCH_ONLY)).figures["steps"] == 4
    said = refused(model=made(ONE_BATCH_ONLY), train={"x": X[:5], "labels": Y[:5]})
    assert said.startswith(
        "The model fixes the batch at 8 samples of one shape, and there are 4 samples. Give more"
    )


class Broken(pl.Callback):
    def on_train_epoch_end(self, *_: Any) -> None:
        raise type("Odd", (Exception,), {})("no such thing")


class Leaving(pl.Callback):
    def on_train_start(self, *_: Any) -> None:
        raise SystemExit(7)


class Twice(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {}


def test_a_callback_that_raises_is_named_whatever_it_raises() -> None:
    assert (
        refused(callbacks=[Broken()]) == "The callback Broken.on_train_epoch_end failed: Odd: no such thing"
    )


def test_a_callback_that_leaves_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        train(callbacks=[Leaving()])


def test_what_is_no_callback_is_refused() -> None:
    assert refused(callbacks=[Broken]).endswith(
        "Broken is no pytorch_lightning.Callback. Give a subclass of it, an instance and not the class."
    )
    assert refused(callbacks=[3]) == (
        "The callback builtins.int is no pytorch_lightning.Callback. Give a subclass of it."
    )


def test_callbacks_that_lightning_refuses_are_refused_in_its_words() -> None:
    said = refused(callbacks=[Twice(), Twice()])
    assert said.startswith(
        "finetune: Lightning refuses this training: Found more than one stateful callback of type"
    )


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said = refused(log=tmp_path / "file" / "log")
    assert said.startswith(f"The log {str(tmp_path / 'file' / 'log')!r} cannot be written: ")
    assert said.endswith("Give another --log.")


def test_a_full_disk_while_the_log_is_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pytorch_lightning.loggers.csv_logs.ExperimentWriter.save", full)
    said = refused(log=tmp_path / "log")
    assert (
        said
        == f"The log {str(tmp_path / 'log')!r} cannot be written: No space left on device. Give another --log."
    )


def test_without_torch_training_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refused() == "finetune needs torch, which is not installed: pip install onnx-compressor[train]"
    assert "finetune" in str(Pipeline.parse("finetune"))
