"""Distillation losses, and how each output is distilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import onnx_ir as ir
import pytest
import torch
from onnx import parser
from torch import Tensor
from torch.nn import functional

from compressor.errors import OptionError
from compressor.pipeline import Change, Context
from compressor.torch_graph import to_torch
from compressor.training.distillation import (
    attention_divergence,
    attention_map,
    attention_matching,
    attention_transfer,
    chance_distillation,
    direction_distillation,
    feature_matching,
    logit_distillation,
    value_distillation,
)
from compressor.training.exposing import with_outputs
from compressor.training.forms import Form
from compressor.training.likeness import distillation, likeness
from compressor.training.objective import objective
from compressor.training.options import Training
from compressor.training.teacher import Teacher


class Tuning(Training):
    name: ClassVar[str] = "finetune"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graph(body: str, outputs: str = "float[N, 3] y") -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => ({outputs}) {{ {body} }}'
    return ir.from_proto(parser.parse_model(text))


Match = Callable[[Tensor, Tensor], Tensor]
MATCHES: dict[str, tuple[Match, Callable[[Tensor], Tensor]]] = {
    "logits": (lambda s, t: logit_distillation(s, t, 3.0), lambda x: x),
    "softmax": (lambda s, t: logit_distillation(s, t, 3.0, Form("softmax")), lambda x: x.softmax(1)),
    "chances": (lambda s, t: chance_distillation(s, t, 3.0, Form("sigmoid")), torch.sigmoid),
    "scores": (lambda s, t: chance_distillation(s, t, 3.0), lambda x: x),
    "directions": (direction_distillation, lambda x: x),
    "values": (value_distillation, lambda x: x),
    "features": (feature_matching, lambda x: x),
    "attention maps": (attention_transfer, lambda x: x),
    "attention": (attention_divergence, lambda x: x.softmax(-1)),
}


@pytest.mark.parametrize("name", MATCHES)
def test_is_least_and_has_a_finite_gradient_where_student_and_teacher_agree(name: str) -> None:
    match, made = MATCHES[name]
    student, teacher, other = (
        drawn(2, 3, 4, 4).requires_grad_(),
        made(drawn(2, 3, 4, 4)),
        made(drawn(2, 3, 4, 4, seed=1)),
    )
    loss = match(made(student), teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-9
    assert gradient.abs().max() < 1e-6
    assert match(other, teacher) > 1e-3


def test_gradient_descent_on_logits_brings_the_student_to_the_teachers_classes() -> None:
    teacher, student = drawn(4, 3), drawn(4, 3, seed=1).requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(logit_distillation(student, teacher, 2.0), student)
        student = (student - 2 * gradient).detach().requires_grad_()
    assert torch.allclose(student.softmax(1), teacher.softmax(1), atol=1e-3)


def test_logit_distillation_is_hintons_formula() -> None:
    s, t = drawn(4, 3), drawn(4, 3, seed=1)
    p, q = (t / 4).softmax(1), (s / 4).softmax(1)
    assert torch.allclose(logit_distillation(s, t, 4.0), 16 * (p * (p / q).log()).sum(1).mean())


def test_the_square_of_the_temperature_keeps_the_gradients_size() -> None:
    s, t = (0.01 * drawn(4, 3)).requires_grad_(), 0.01 * drawn(4, 3, seed=1)
    sizes = [torch.autograd.grad(logit_distillation(s, t, x), s)[0].norm() for x in (1.0, 20.0)]
    assert torch.allclose(sizes[0], sizes[1], rtol=0.02)


def test_temperature_acts_the_same_before_and_behind_the_softmax() -> None:
    s, t = drawn(4, 3), drawn(4, 3, seed=1)
    behind = logit_distillation(s.softmax(1), t.softmax(1), 4.0, Form("softmax"))
    assert torch.allclose(logit_distillation(s, t, 4.0), behind)


def test_classes_may_lie_on_any_axis() -> None:
    s, t = drawn(2, 5, 3), drawn(2, 5, 3, seed=1)
    want = logit_distillation(s.flatten(0, 1), t.flatten(0, 1), 2.0)
    assert torch.allclose(logit_distillation(s, t, 2.0, Form(axis=2)), want)


def test_chances_are_classes_of_two() -> None:
    s, t = drawn(4, 1), drawn(4, 1, seed=1)
    two = [functional.pad(x, (1, 0)) for x in (s, t)]
    assert torch.allclose(chance_distillation(s, t, 2.0), logit_distillation(two[0], two[1], 2.0))


def test_feature_matching_does_not_depend_on_the_layers_scale() -> None:
    s, t = drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=1)
    assert torch.allclose(feature_matching(s, t), feature_matching(100 * s, 100 * t))
    assert feature_matching(torch.zeros(2, 3), torch.zeros(2, 3)) == 0


def test_pruned_channels_are_matched_by_their_attention_map() -> None:
    t = drawn(2, 6, 4, 4)
    t[:, 4:] = 0
    assert feature_matching(t[:, :4], t) < 1e-9
    tokens = drawn(2, 5, 6)
    tokens[..., 4:] = 0
    assert feature_matching(tokens[..., :4], tokens) < 1e-9
    assert feature_matching(drawn(2, 4, 4, 4, seed=1), t) > 1e-3


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 4, 4), (2, 6, 2, 4)), ((2, 3), (2, 6)), ((2, 3, 4), (2, 3, 4, 4))]
)
def test_says_which_value_cannot_be_matched(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"'conv1' is \[2, 3.* in the student and .* Choose another value"):
        feature_matching(drawn(*student), drawn(*teacher), "conv1")


def test_an_attention_map_has_length_one_and_knows_no_scale() -> None:
    x = drawn(2, 3, 4, 4)
    found = attention_map(x)
    assert found.shape == (2, 16)
    assert torch.allclose(found.norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(found, attention_map(7 * x))
    assert not attention_map(torch.zeros(1, 3, 4, 4)).any()


def test_attention_maps_sum_squares_over_the_channels() -> None:
    x = torch.zeros(1, 2, 1, 2)
    x[0, :, 0, 0] = torch.tensor([3.0, -4.0])
    x[0, 0, 0, 1] = 5.0
    assert torch.allclose(attention_map(x), torch.full((1, 2), 0.5**0.5))


def test_attention_probabilities_are_compared_as_distributions() -> None:
    s, t = drawn(2, 3, 4, 4).softmax(-1), drawn(2, 3, 4, 4, seed=1).softmax(-1)
    want = (t * (t / s).log()).sum(-1).mean()
    assert torch.allclose(attention_matching(s, t, "a", probabilities=True), want)
    assert torch.allclose(attention_matching(s, t, "a", probabilities=False), attention_transfer(s, t))


def test_masked_attention_and_pruned_heads_are_compared() -> None:
    t = drawn(2, 3, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1)
    assert abs(attention_divergence(t, t)) < 1e-9
    assert attention_divergence(t[:, :2], t).isfinite()


@pytest.mark.parametrize(
    ("answer", "form", "loss", "like"),
    [
        (drawn(8, 3), Form(), "auto", "guess"),
        (drawn(8, 3), Form(), "cross-entropy", "classes"),
        (drawn(8, 3), Form(), "mse", "values"),
        (drawn(8, 3), Form("softmax"), "auto", "classes"),
        (drawn(8, 3), Form("softmax"), "mae", "values"),
        (drawn(8, 3), Form("sigmoid"), "auto", "chances"),
        (drawn(8, 1), Form(), "bce", "chances"),
        (drawn(8, 1), Form(), "auto", "values"),
        (drawn(8, 1), Form("softmax"), "auto", "values"),
        (drawn(8), Form(), "cosine", "values"),
        (drawn(8, 3), Form(), "cosine", "directions"),
        (functional.normalize(drawn(8, 3)), Form(), "auto", "directions"),
        (drawn(8, 3, 4, 4), Form(), "auto", "values"),
        (drawn(8, 5, 3), Form(axis=2), "cross-entropy", "classes"),
    ],
)
def test_what_an_output_is_decides_how_it_is_distilled(
    answer: Tensor, form: Form, loss: str, like: str
) -> None:
    assert likeness(answer, form, loss) == like


def test_a_guess_holds_the_values_that_a_softmax_does_not_see() -> None:
    answers = drawn(8, 3)
    match = distillation(graph("y = Relu(x)"), Tuning(), [answers])
    assert match.matches[0].likeness == "guess"
    assert match([answers + 1], [answers]) > 0.1
    assert logit_distillation(answers + 1, answers, 2.0) < 1e-9


def test_labels_decide_how_their_output_is_distilled() -> None:
    answers, model = drawn(4, 3), graph("y = Relu(x)")
    terms = objective(model, Tuning(), torch.tensor([0, 1, 2, 1]).numpy(), [answers]).terms
    match = distillation(model, Tuning(temperature=5.0), [answers], terms)
    student = drawn(4, 3, seed=1)
    assert torch.allclose(match([student], [answers]), logit_distillation(student, answers, 5.0))


def test_values_are_measured_by_the_spread_of_the_originals() -> None:
    answers, model = 100 * drawn(8, 1), graph("y = Relu(x)", "float[N, 1] y")
    match = distillation(model, Tuning(), [answers])
    student = answers + 100 * drawn(8, 1, seed=1)
    want = (student - answers).square().mean() / answers.var(correction=0)
    assert torch.allclose(match([student], [answers]), want)
    flat = distillation(model, Tuning(), [torch.zeros(8, 1)])
    assert flat([torch.ones(8, 1)], [torch.zeros(8, 1)]) == 1


def test_every_float_output_is_distilled_and_weighted() -> None:
    model = graph("y = Relu(x) z = Neg(x) i = ArgMax(x)", "float[N, 3] y, float[N, 3] z, int64[N, 1] i")
    y, z, i = drawn(4, 3), drawn(4, 3, seed=1), torch.zeros(4, 1, dtype=torch.int64)
    student: list[Any] = [y + 0.1, z + 0.2, i]
    both = distillation(model, Tuning(loss="mse"), [y, z, i])
    assert [m.index for m in both.matches] == [0, 1]
    one = distillation(model, Tuning(loss="mse", loss_weights=(0.0, 2.0, 1.0)), [y, z, i])
    assert torch.allclose(one(student, [y, z, i]), 2 * value_distillation(z + 0.2, z, one.matches[0].scale))


def test_says_that_nothing_can_be_distilled() -> None:
    with pytest.raises(OptionError, match="finetune: the model has no output of floats to distil"):
        distillation(
            graph("y = ArgMax(x)", "int64[N, 1] y"), Tuning(), [torch.zeros(4, 1, dtype=torch.int64)]
        )


def test_a_student_made_from_a_changed_file_comes_back_to_the_original(tiny_mlp: ir.Model) -> None:
    options = Tuning(features=("r",), teacher="torch")
    teacher = Teacher(tiny_mlp, options, 64, torch.device("cpu"))
    changed = tiny_mlp.clone()
    weight = changed.graph.initializers["w2"]
    weight.const_value = ir.tensor(0.5 * weight.const_value.numpy(), name="w2")
    student = to_torch(with_outputs(changed, teacher.values))
    x, rows = drawn(64, 4).float(), torch.arange(64)
    answers = teacher((x,), rows)
    match = distillation(tiny_mlp, options, answers.outputs)
    optimizer, losses = torch.optim.Adam(student.parameters(), 0.02), []
    for _ in range(60):
        answers = teacher((x,), rows)
        output, hidden = student(x)
        loss = match([output], answers.outputs) + feature_matching(hidden, answers.values["r"], "r")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
