"""Optimizers and the rate and decay of each parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, final

import onnx_ir as ir
import pytest
import torch

from compressor.errors import OptionError
from compressor.pipeline import Change, Context
from compressor.training.optimizers import optimizer, parameter_groups
from compressor.training.options import Training

DEPTHS = {"stem.w": 2, "stem.b": 2, "norm.scale": 2, "body.w": 1, "head.w": 0, "head.b": 0}
SHAPES = {
    "stem.w": (3, 2),
    "stem.b": (3,),
    "norm.scale": (3,),
    "body.w": (3, 3),
    "head.w": (2, 3),
    "head.b": (2,),
}
WEIGHTS = ("stem.w", "body.w", "head.w")


@final
class Train(Training):
    name: ClassVar[str] = "train"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}


def by_name(given: dict[str, torch.nn.Parameter], groups: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Parameter name -> the value of its group; fails for a parameter that is missing or in two groups."""
    home = [(id(p), group[key]) for group in groups for p in group["params"]]
    assert len(home) == len(dict(home)) == len(given)
    return {name: dict(home)[id(p)] for name, p in given.items()}


def groups_of(**options: Any) -> list[dict[str, Any]]:
    return parameter_groups(parameters(), Train(**options), DEPTHS, WEIGHTS)


def test_by_default_all_have_one_rate_and_biases_and_norms_no_decay() -> None:
    given = parameters()
    groups = parameter_groups(given, Train(lr=0.1, weight_decay=0.3), DEPTHS, WEIGHTS)
    assert len(groups) == 2
    assert set(by_name(given, groups, "lr").values()) == {0.1}
    decay = by_name(given, groups, "weight_decay")
    assert {name for name, value in decay.items() if value == 0.3} == set(WEIGHTS)
    assert {value for name, value in decay.items() if name not in WEIGHTS} == {0.0}


def test_a_vector_has_no_decay_even_where_a_layer_multiplies_by_it() -> None:
    given = {"v": torch.nn.Parameter(torch.ones(3))}
    assert parameter_groups(given, Train(), {}, ("v",))[0]["weight_decay"] == 0.0


def test_the_rate_falls_by_one_factor_per_layer_from_the_output() -> None:
    given = parameters()
    rates = by_name(given, parameter_groups(given, Train(lr=1.0, lr_decay=0.5), DEPTHS, WEIGHTS), "lr")
    assert rates == {name: 0.5**depth for name, depth in DEPTHS.items()}


def test_the_last_glob_that_matches_sets_the_factor() -> None:
    given = parameters()
    train = Train(lr=1.0, lr_for={"*": 0.5, "head.*": 3.0, "head.b": 0.0})
    rates = by_name(given, parameter_groups(given, train, DEPTHS, WEIGHTS), "lr")
    assert (rates["stem.w"], rates["head.w"], rates["head.b"]) == (0.5, 3.0, 0.0)


def test_the_factors_multiply() -> None:
    given = parameters()
    train = Train(lr=0.1, lr_decay=0.5, lr_for={"stem.*": 0.1})
    assert by_name(given, parameter_groups(given, train, DEPTHS, WEIGHTS), "lr")["stem.w"] == pytest.approx(
        0.0025
    )


def test_a_parameter_of_unknown_depth_counts_as_next_to_the_output() -> None:
    groups = parameter_groups({"new": torch.nn.Parameter(torch.ones(2))}, Train(lr=1.0, lr_decay=0.1), {}, ())
    assert groups[0]["lr"] == 1.0


def test_a_rate_that_is_yet_to_be_found_leaves_the_factors() -> None:
    assert {group["lr"] for group in groups_of(lr="auto", lr_decay=0.5)} == {1.0, 0.5, 0.25}


def test_a_glob_for_a_rate_that_matches_nothing_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        OptionError, match=r"train: lr_for='hed.w' matches no parameter. Did you mean 'head.w'\?"
    ):
        groups_of(lr_for={"hed.w": 2.0})


CLASSES = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "torch.optim:NAdam": torch.optim.NAdam,
}


@pytest.mark.parametrize("name", CLASSES)
def test_steps_as_the_torch_optimizer_of_that_name_does(name: str) -> None:
    given = {
        "sgd": {"momentum": 0.8, "nesterov": True},
        "rmsprop": {"momentum": 0.8},
        "adam": {"betas": (0.5, 0.6)},
        "adamw": {"betas": (0.5, 0.6)},
    }.get(name, {})
    mine, theirs = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    train = Train(optimizer=name, lr=0.1, weight_decay=0.2, **given)
    made = optimizer(train, parameter_groups({"w": mine}, train, {}, ("w",)))
    reference = CLASSES[name]([theirs], lr=0.1, weight_decay=0.2, **given)
    assert type(made) is CLASSES[name]
    for step in range(3):
        for parameter, stepped in ((mine, made), (theirs, reference)):
            parameter.grad = torch.full((2, 2), 0.1 * (step + 1))
            stepped.step()
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, torch.ones(2, 2))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_changes_all_parameters_in_one_call_and_as_it_does_one_by_one(name: str) -> None:
    together, singly = parameters(), parameters()
    train = Train(optimizer=name, lr=0.1, weight_decay=0.2)
    plain = train.model_copy(update={"optimizer_options": {"fused": False}})
    pairs = []
    for given, options in ((together, train), (singly, plain)):
        pairs.append((given, optimizer(options, parameter_groups(given, options, DEPTHS, WEIGHTS))))
    assert [made.defaults["fused"] for _, made in pairs] == [True, False]
    for step in range(3):
        for given, made in pairs:
            for number, parameter in enumerate(given.values()):
                parameter.grad = torch.full_like(parameter, 0.1 * (step + number))
            made.step()
    for key in SHAPES:  # three steps of some ten roundings of at most 6e-8 each
        torch.testing.assert_close(together[key], singly[key], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer_options": {"foreach": True}},
        {"optimizer_options": {"fused": False}},
        {"precision": "bf16", "clip_norm": 1.0},
        {"precision": "16"},
        {"optimizer": "sgd"},  # torch's fused one fails for parameters that are released later
    ],
)
def test_not_where_the_user_or_mixed_precision_asks_for_something_else(options: dict[str, Any]) -> None:
    assert not optimizer(Train(**options), groups_of()).defaults["fused"]


def test_decay_is_decoupled_in_adamw_and_in_the_gradient_in_adam() -> None:
    left = {}
    for name in ("adam", "adamw"):
        train = Train(optimizer=name, lr=0.1, weight_decay=0.5)
        weight = torch.nn.Parameter(torch.ones(2, 2))
        made = optimizer(train, parameter_groups({"w": weight}, train, {}, ("w",)))
        weight.grad = torch.zeros(2, 2)
        made.step()
        left[name] = weight[0, 0].item()
    assert left["adamw"] == pytest.approx(1 - 0.1 * 0.5)
    assert left["adam"] == pytest.approx(1 - 0.1)  # Adam's first step is lr times the sign of the gradient


def test_further_arguments_reach_the_optimizer() -> None:
    made = optimizer(Train(optimizer="adam", optimizer_options={"amsgrad": True, "eps": 1e-3}), groups_of())
    assert made.defaults["amsgrad"] is True
    assert made.defaults["eps"] == 1e-3


def test_frozen_parameters_are_not_decayed() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    train = Train(lr=0.1, weight_decay=0.5)
    optimizer(train, parameter_groups({"w": weight}, train, {}, ("w",))).step()
    assert torch.equal(weight, torch.ones(2, 2))


OWN = """
import torch
class Own(torch.optim.SGD):
    def __init__(self, params, lr, scale=1.0, weight_decay=0.0):
        super().__init__(params, lr=lr * scale, weight_decay=weight_decay)
class NoDecay(torch.optim.Optimizer):
    def __init__(self, params, lr): super().__init__(params, {"lr": lr})
"""


def test_takes_the_class_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    train = Train(optimizer=f"{tmp_path / 'own.py'}:Own", optimizer_options={"scale": 2.0}, lr=0.1)
    assert optimizer(train, groups_of()).defaults["lr"] == 0.2


def test_decay_that_an_optimizer_does_not_have_is_refused_unless_it_is_off(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    name = f"{tmp_path / 'own.py'}:NoDecay"
    with pytest.raises(OptionError, match=r"has no weight decay, got weight_decay=0.01. Give weight_decay=0"):
        optimizer(Train(optimizer=name), groups_of())
    optimizer(Train(optimizer=name, weight_decay=0.0), groups_of())


def test_adam_in_bfloat16_changes_all_parameters_in_one_call_where_nothing_is_clipped() -> None:
    assert optimizer(Train(precision="bf16"), groups_of()).defaults["fused"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fused": (
        {"precision": "bf16", "clip_norm": 1.0, "optimizer_options": {"fused": True}},
        "gradients of a fused optimizer are not clipped with precision='bf16'. Leave out fused",
    ),
    "unknown": ({"optimizer": "adma"}, r"train: no optimizer 'adma'. Did you mean 'adam'\? .* MODULE:CLASS"),
    "module": ({"optimizer": "no_such_package:A"}, "'no_such_package' cannot be imported: No module named"),
    "empty module": ({"optimizer": ":A"}, "'' cannot be imported"),
    "file": ({"optimizer": "nothing.py:A"}, "there is no file 'nothing.py'"),
    "class": (
        {"optimizer": "torch.optim:NAdm"},
        r"no optimizer 'NAdm' in 'torch.optim'. Did you mean 'NAdam'\?",
    ),
    "not an optimizer": (
        {"optimizer": "json:JSONEncoder"},
        "no optimizer 'JSONEncoder' in 'json'. It has none.",
    ),
    "argument": (
        {"optimizer": "adam", "optimizer_options": {"amsgrd": True}},
        r"optimizer='adam' has no argument 'amsgrd'. Did you mean 'amsgrad'\?",
    ),
    "value": (
        {"optimizer": "adam", "optimizer_options": {"eps": -1.0}},
        "optimizer='adam' refuses .*Invalid epsilon value: -1.0",
    ),
    "betas": ({"betas": (0.9, 1.5)}, "Invalid beta parameter at index 1: 1.5"),
    "an option of ours": (
        {"optimizer_options": {"lr": 0.1}},
        "'lr' in optimizer_options is an option of train itself",
    ),
    "nesterov without momentum": (
        {"optimizer": "sgd", "nesterov": True, "momentum": 0.0},
        "train: nesterov needs a momentum above 0, got 0",
    ),
    "nesterov elsewhere": ({"nesterov": True}, "train: nesterov is of sgd, got optimizer='adamw'"),
    "one group only": (
        {"optimizer": "torch.optim:LBFGS", "weight_decay": 0.0},
        "refuses .*LBFGS doesn't support",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_words(case: str) -> None:
    options, words = REFUSED[case]
    with pytest.raises(OptionError, match=words):
        optimizer(Train(**options), groups_of(lr_decay=0.5))
