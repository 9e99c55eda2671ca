"""The losses, the labels that fit them, and the objective made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch import Tensor
from torch.nn import functional

from compressor.errors import DataError, OptionError
from compressor.pipeline import Change, Context
from compressor.training.forms import Form, applied, class_axis, logits, step
from compressor.training.labels import auto_loss, check_labels
from compressor.training.losses import LOSSES, bce, cross_entropy, mse
from compressor.training.objective import Objective, objective
from compressor.training.options import Training


class Tuning(Training):
    name: ClassVar[str] = "finetune"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graph(body: str, outputs: str = "float[N, 3] y") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


def made(labels: Any, output: Tensor, body: str = "y = Relu(x)", **options: Any) -> Objective:
    return objective(graph(body), Tuning(**options), None if labels is None else np.asarray(labels), [output])


IDS = torch.tensor([0, 2, 1, 2])


def test_cross_entropy_equals_torchs() -> None:
    x = drawn(4, 3)
    got = cross_entropy(x, IDS, Form(smoothing=0.1))
    assert torch.allclose(got, functional.cross_entropy(x, IDS, reduction="none", label_smoothing=0.1))


@pytest.mark.parametrize(
    ("done", "forward"), [("softmax", torch.softmax), ("log-softmax", torch.log_softmax)]
)
def test_cross_entropy_of_a_model_that_ends_in_a_softmax_is_that_of_its_scores(
    done: Any, forward: Any
) -> None:
    x = drawn(4, 3).requires_grad_()
    plain = cross_entropy(x, IDS, Form()).mean()
    through = cross_entropy(forward(x, 1), IDS, Form(applied=done)).mean()
    assert torch.allclose(plain, through)
    assert torch.allclose(*(torch.autograd.grad(loss, x)[0] for loss in (plain, through)))


def test_bce_of_a_model_that_ends_in_a_sigmoid_is_that_of_its_scores() -> None:
    x, y = drawn(4, 1).requires_grad_(), torch.tensor([0, 1, 1, 0])
    plain, through = bce(x, y, Form()).mean(), bce(x.sigmoid(), y, Form(applied="sigmoid")).mean()
    assert torch.allclose(plain, through)
    assert torch.allclose(*(torch.autograd.grad(loss, x)[0] for loss in (plain, through)))


@pytest.mark.parametrize("done", ["softmax", "log-softmax"])
def test_bce_takes_what_a_softmax_gives_for_chances(done: Any) -> None:
    p, y = drawn(4, 3).softmax(1), torch.eye(3)[IDS]
    output = p.log() if done == "log-softmax" else p
    want = functional.binary_cross_entropy(p, y.double(), reduction="none").mean(1)
    assert torch.allclose(bce(output, y, Form(applied=done)), want)


def test_a_class_at_chance_zero_gives_a_finite_gradient_and_can_come_back_from_quantization() -> None:
    x = torch.tensor([[40.0, -80.0, 0.0]]).requires_grad_()
    p = x.softmax(1)
    loss = 100 * cross_entropy(p, torch.tensor([1]), Form(applied="softmax")).mean()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()

    x = torch.tensor([[6.0, 0.0, 0.0]]).requires_grad_()
    p = x.softmax(1)
    coded = p + ((p * 64).round() / 64 - p).detach()  # the chance of class 1 becomes 0
    loss = cross_entropy(coded, torch.tensor([1]), Form(applied="softmax", step=1 / 64)).mean()
    assert torch.autograd.grad(loss, x)[0][0, 1] < -0.1


def test_half_precision_outputs_are_computed_in_single() -> None:
    assert {loss(drawn(4, 3).half(), torch.eye(3)[IDS], Form()).dtype for loss in LOSSES.values()} == {
        torch.float32
    }


def test_soft_labels_of_one_class_are_its_id() -> None:
    x, form = drawn(4, 3), Form(smoothing=0.2, weights=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(cross_entropy(x, torch.eye(3)[IDS], form), cross_entropy(x, IDS, form))


@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 3), 2), ((2, 3, 5, 4), 1)])
def test_dense_labels_are_the_mean_over_positions(shape: tuple[int, ...], axis: int) -> None:
    x, ids = drawn(*shape), torch.arange(10 if axis == 2 else 40) % 3
    ids = ids.reshape(*shape[:axis], *shape[axis + 1 :])
    want = functional.cross_entropy(x.movedim(axis, 1), ids, reduction="none").flatten(1).mean(1)
    assert class_axis(shape, tuple(ids.shape)) == axis
    assert torch.allclose(cross_entropy(x, ids, Form(axis=axis)), want)


def test_ignored_positions_are_left_out_of_the_mean() -> None:
    x, ids = drawn(2, 4, 3), torch.tensor([[0, 1, -100, -100], [-100] * 4])
    want = cross_entropy(x[:1, :2], ids[:1, :2], Form(axis=2))
    assert torch.allclose(
        cross_entropy(x, ids, Form(axis=2)), torch.stack((want[0], torch.zeros_like(want[0])))
    )


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("mse", lambda x, y: functional.mse_loss(x, y)),
        ("mae", lambda x, y: functional.l1_loss(x, y)),
        ("huber", lambda x, y: functional.huber_loss(x, y)),
        ("cosine", lambda x, y: (1 - functional.cosine_similarity(x, y)).mean()),
        ("bce", lambda x, y: functional.binary_cross_entropy_with_logits(x, y)),
        ("kl", lambda x, y: functional.kl_div(x.log_softmax(1), y, reduction="batchmean")),
    ],
)
def test_losses_equal_torchs(name: str, want: Any) -> None:
    x, y = drawn(4, 3), drawn(4, 3, seed=1).softmax(1)
    assert torch.allclose(LOSSES[name](x, y, Form()).mean(), want(x, y))


def test_a_column_of_labels_is_not_broadcast_against_a_row() -> None:
    x, y = drawn(4, 1), drawn(4, seed=1)
    assert torch.allclose(mse(x, y, Form()), (x[:, 0] - y).square())
    with pytest.raises(DataError, match=r"Labels \[3\] do not fit an output \[4, 1\]"):
        mse(x, y[:3], Form())
    with pytest.raises(DataError, match=r"Labels \[4, 2\] do not fit scores \[4, 3\] of classes"):
        cross_entropy(drawn(4, 3), torch.zeros(4, 2), Form())


@pytest.mark.parametrize(("name", "labels"), [("cross-entropy", IDS), ("mse", drawn(4, 3, seed=1))])
def test_unequal_batches_accumulate_to_the_gradient_of_the_whole(name: str, labels: Tensor) -> None:
    x = drawn(4, 3).requires_grad_()
    loss = made(labels.numpy(), x, loss=name, class_weights="balanced" if name == "cross-entropy" else "none")
    whole = torch.autograd.grad(loss([x], labels), x)[0]
    parts = sum(len(i) / 4 * loss([x[i]], labels[i]) for i in (torch.tensor([0]), torch.tensor([1, 2, 3])))
    assert torch.allclose(torch.autograd.grad(parts, x)[0], whole)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = Relu(x)", ""),
        ("y = Softmax(x)", "softmax"),
        ("l = LogSoftmax(x) y = Identity(l)", "log-softmax"),
        ("s = Sigmoid(x) f = Flatten(s) y = Cast <to = 1> (f)", "sigmoid"),
        ("s = Softmax(x) y = Relu(s)", ""),
        ("y = Identity(x)", ""),
    ],
)
def test_finds_what_the_graph_applies_to_its_scores(body: str, found: str) -> None:
    value = graph(body).graph.outputs[0]
    assert applied(value) == found
    assert step(value) == 0


def test_sees_a_softmax_behind_quantizers_and_their_step() -> None:
    body = """s = Softmax(x) c = Constant <value = float {0.25}> () z = Constant <value = uint8 {0}> ()
    q = QuantizeLinear(s, c, z) y = DequantizeLinear(q, c, z)"""
    value = graph(body).graph.outputs[0]
    assert (applied(value), step(value)) == ("softmax", 0.25)
    assert applied(None) == ""


def test_logits_of_a_sigmoid_are_its_scores() -> None:
    x = drawn(5)
    assert torch.allclose(logits(x.sigmoid(), Form(applied="sigmoid")), x)
    assert logits(torch.tensor([0.0, 1.0]), Form(applied="sigmoid")).isfinite().all()


@pytest.mark.parametrize(
    ("labels", "output", "done", "loss"),
    [
        ([0, 2, 1], (1, 3), "", "cross-entropy"),
        ([0.0, 2.0, 1.0], (1, 3), "", "cross-entropy"),
        ([[0, 2], [1, 1]], (1, 2, 3), "", "cross-entropy"),
        (np.eye(3), (1, 3), "", "cross-entropy"),
        ([[0.5, 0.5], [0.9, 0.1]], (1, 2), "", "cross-entropy"),
        (np.eye(3), (1, 3), "sigmoid", "bce"),
        ([[1, 1, 0], [0, 0, 0]], (1, 3), "", "bce"),
        ([0, 1, 1], (1, 1), "", "bce"),
        ([0, 1, 1], (1,), "sigmoid", "bce"),
        ([0.1, 1.0, 3.0], (1, 1), "", "mse"),
        ([0, 5, 7], (1, 1), "", "mse"),
        ([[0.1, 2.0, 4.0]], (1, 3), "", "mse"),
    ],
)
def test_auto_takes_the_loss_that_the_labels_ask_for(labels: Any, output: Any, done: Any, loss: str) -> None:
    assert auto_loss(np.asarray(labels), output, done) == loss
    check_labels(loss, np.asarray(labels), output)


@pytest.mark.parametrize("labels", [np.zeros((4, 2)), np.array([0.5, 1.5])])
def test_auto_says_that_no_loss_fits(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"No loss fits labels .* and an output \[8, 3\]: give class ids"):
        auto_loss(labels, (8, 3))


@pytest.mark.parametrize(
    ("loss", "labels", "output", "message"),
    [
        ("cross-entropy", [0, 1, 3], (8, 3), "label 3 in row 2, but the model has 3 classes, 0 to 2"),
        ("cross-entropy", [0, -1, 3], (8, 3), "label -1 in row 1, but the model has 3 classes"),
        ("cross-entropy", [0, -100], (8, 3), "label -100 in row 1"),
        ("cross-entropy", [0, 0.5], (8, 3), "label 0.5 in row 1"),
        ("cross-entropy", [[0, -100], [1, 3]], (8, 2, 3), "label 3 in row 1"),
        ("cross-entropy", [[0.5, 0.5], [0.5, 0.6]], (8, 2), r"label \[0.5 0.6\] in row 1, .* sum to 1"),
        ("cross-entropy", [0, 1], (8, 1), r"an output \[1\]; give loss='bce'"),
        ("cross-entropy", [[0, 1]] * 2, (8, 3), r"\[2\] per sample .* an output \[3\]; give class ids"),
        ("bce", [0, 2], (8, 1), r"label 2 in row 1, but it must lie in \[0, 1\]"),
        ("bce", [0, 1], (8, 2), "give numbers of that shape"),
        ("kl", [[0.5, 0.5], [1.5, -0.5]], (8, 2), r"label \[ 1.5 -0.5\] in row 1"),
        ("kl", [[1.0], [1.0]], (8, 1), "give two classes or more"),
        ("mse", [0.5, 1.5], (8, 2), r"labels \[\] per sample do not fit an output \[2\]"),
        ("cosine", [0.5, 1.5], (8, 1), "give vectors of two numbers or more"),
    ],
)
def test_says_which_label_does_not_fit(loss: str, labels: Any, output: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"loss '{loss}': .*{message}"):
        check_labels(loss, np.asarray(labels), output)


def test_ignored_tokens_are_no_wrong_labels() -> None:
    check_labels("cross-entropy", np.array([[0, -100], [1, 2]]), (8, 2, 3))


def test_labels_are_checked_before_the_first_step() -> None:
    with pytest.raises(DataError, match="label 3 in row 1"):
        made([0, 3], drawn(2, 3))


def test_says_that_the_loss_needs_labels() -> None:
    with pytest.raises(DataError, match=r"finetune: loss='mse' needs labels, .* distill=1"):
        made(None, drawn(2, 3), loss="mse")
    with pytest.raises(DataError, match="A batch has no labels"):
        made([0, 1], drawn(2, 3))([drawn(2, 3)], None)


def test_class_weights_have_mean_one_over_the_labels() -> None:
    labels = [0, 0, 0, 1, 2, 2]
    balanced = made(labels, drawn(6, 3), class_weights="balanced").terms[0].form.weights
    assert balanced is not None
    assert torch.allclose(balanced, torch.tensor([2 / 3, 2.0, 1.0]))
    given = made(labels, drawn(6, 3), class_weights=(1.0, 10.0, 1.0)).terms[0].form.weights
    assert given is not None
    assert torch.allclose(given[torch.tensor(labels)].mean(), torch.tensor(1.0))
    assert torch.allclose(given[1] / given[0], torch.tensor(10.0))


def test_weighted_loss_over_all_data_is_torchs_weighted_mean() -> None:
    x, w = drawn(4, 3), torch.tensor([1.0, 10.0, 2.0], dtype=torch.float64)
    loss = made(IDS.numpy(), x, class_weights=(1.0, 10.0, 2.0))
    assert torch.allclose(loss([x], IDS), functional.cross_entropy(x, IDS, w), atol=1e-6)


def test_one_hot_labels_are_balanced_as_their_ids() -> None:
    hot, ids = (
        made(y, drawn(4, 3), class_weights="balanced").terms[0].form.weights for y in (np.eye(3)[IDS], IDS)
    )
    assert torch.equal(hot, ids)


def test_binary_labels_can_be_weighted() -> None:
    x, y = drawn(4, 1), torch.tensor([0, 0, 0, 1])
    each = functional.binary_cross_entropy_with_logits(x[:, 0], y.double(), reduction="none")
    loss = made(y.numpy(), x, class_weights="balanced")
    assert loss.terms[0].name == "bce"
    assert torch.allclose(loss([x], y), (each[:3].mean() + each[3]) / 2)


def test_class_weights_need_classes() -> None:
    with pytest.raises(OptionError, match=r"class_weights need class labels .* but the loss is 'mse'"):
        made([[0.5, 1.0, 7.0]], drawn(1, 3), class_weights="balanced")


def test_label_smoothing_acts_and_is_refused_where_it_cannot() -> None:
    x = drawn(4, 3)
    smooth = made(IDS.numpy(), x, label_smoothing=0.1)([x], IDS)
    assert torch.allclose(smooth, functional.cross_entropy(x, IDS, label_smoothing=0.1))
    with pytest.raises(OptionError, match=r"label_smoothing=0.1 is of cross-entropy, but the loss is 'mse'"):
        made(drawn(4, 3).numpy(), x, loss="mse", label_smoothing=0.1)


TWO = ("y = Relu(x) z = Neg(x)", "float[N, 3] y, float[N, 3] z")


def test_one_loss_counts_for_the_first_output_and_weights_for_all() -> None:
    x, z = drawn(4, 3), drawn(4, 3, seed=1)
    ce = [functional.cross_entropy(o, IDS) for o in (x, z)]
    for options, want in (
        ({}, ce[0]),
        ({"loss_weights": (1.0, 0.3)}, ce[0] + 0.3 * ce[1]),
        ({"loss_weights": (0.0, 2.0)}, 2 * ce[1]),
        ({"loss": ("auto", "cross-entropy")}, ce[0] + ce[1]),
    ):
        loss = objective(graph(*TWO), Tuning(**options), IDS.numpy(), [x, z])
        assert torch.allclose(loss([x, z], IDS), want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "crossentropy"}, "finetune: no loss 'crossentropy'. Did you mean 'cross-entropy'?"),
        ({"loss": ("mse", "mse", "mse")}, "loss has 3 names, but the model 2 outputs"),
        ({"loss_weights": (1.0,)}, "loss_weights has 1 numbers, but the model 2 outputs"),
        ({"loss_weights": (0.0, 0.0)}, "loss_weights are all 0"),
        ({"loss": "nowhere.py:f"}, "loss 'nowhere.py:f': there is no file 'nowhere.py'"),
        ({"loss": "not_a_module:f"}, "'not_a_module' cannot be imported: No module named"),
        ({"loss": "math:logg"}, "no function 'logg' in 'math'. Did you mean 'log"),
    ],
)
def test_says_which_option_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        objective(graph(*TWO), Tuning(**options), IDS.numpy(), [drawn(4, 3)] * 2)
    assert message in str(caught.value)


def test_a_loss_of_the_users_own_is_called_with_output_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def cubed(output, labels):\n    return (output - labels).abs().pow(3).mean()\n")
    x, y = drawn(4, 3), drawn(4, 3, seed=1)
    loss = made(y.numpy(), x, loss=f"{file}:cubed")
    assert torch.allclose(loss([x], y), (x - y).abs().pow(3).mean())


def test_a_loss_of_the_users_own_may_do_without_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def small(output, labels):\n    return output.square().mean()\n")
    x = drawn(4, 3)
    assert torch.allclose(made(None, x, loss=f"{file}:small")([x], None), x.square().mean())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("output @ labels", "raised RuntimeError: .*called as f\\(output, labels\\)"),
        ("undefined", "raised NameError"),
        ("output - labels", r"must return a scalar tensor of floats, got a tensor \[4, 3\] of torch.float64"),
        ("1.0", "must return a scalar tensor of floats, got float"),
        ("(output > 0).sum()", r"must return .* got a tensor \[\] of torch.int64"),
        ("output.detach().mean()", "has no gradient"),
    ],
)
def test_an_error_in_the_users_loss_is_one_line_that_names_it(
    tmp_path: Path, body: str, message: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def f(output, labels):\n    return {body}\n")
    x = drawn(4, 3).requires_grad_()
    loss = made(drawn(4, 3).numpy(), x, loss=f"{file}:f")
    with pytest.raises(OptionError, match=f"mine.py:f' {message}") as caught:
        loss([x], drawn(4, 3))
    assert "\n" not in str(caught.value)


def test_a_file_without_functions_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(OptionError, match=r"no function 'f' in .*It has none"):
        made([0, 1], drawn(2, 3), loss=f"{tmp_path}/empty.py:f")
