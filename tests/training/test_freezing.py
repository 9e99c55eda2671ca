"""What stays as it is, and when it is released."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, final

import onnx_ir as ir
import pytest

from compressor.errors import OptionError
from compressor.pipeline import Change, Context
from compressor.training.freezing import frozen, released
from compressor.training.options import Training

DEPTHS = {"stem.w": 3, "stem.b": 3, "one.w": 2, "one.b": 2, "two.w": 1, "head.w": 0, "head.b": 0}


@final
class Train(Training):
    name: ClassVar[str] = "train"

    def apply(self, model: ir.Model, context: Context) -> Change:
        return Change()


def test_by_default_nothing_is_frozen() -> None:
    assert frozen(DEPTHS, Train(), DEPTHS) == frozenset()


def test_globs_freeze_the_names_they_match_and_no_other() -> None:
    assert frozen(DEPTHS, Train(freeze=("stem.*", "*.b")), DEPTHS) == {"stem.w", "stem.b", "one.b", "head.b"}


@pytest.mark.parametrize(
    ("share", "layers"),
    [(0.0, set()), (0.25, {"stem"}), (0.5, {"stem", "one"}), (0.75, {"stem", "one", "two"})],
)
def test_a_share_of_the_layers_is_frozen_from_the_input(share: float, layers: set[str]) -> None:
    names = frozen(DEPTHS, Train(freeze_depth=share), DEPTHS)
    assert names == {name for name in DEPTHS if name.split(".")[0] in layers}


def test_only_what_can_be_trained_is_counted_as_a_layer() -> None:
    assert frozen(["two.w", "head.w"], Train(freeze_depth=0.5), DEPTHS) == {"two.w"}


def test_globs_and_depth_add_up() -> None:
    assert frozen(DEPTHS, Train(freeze=("head.b",), freeze_depth=0.25), DEPTHS) == {
        "stem.w",
        "stem.b",
        "head.b",
    }


def test_a_glob_that_matches_nothing_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        OptionError, match=r"train: freeze='stm.w' matches no parameter. Did you mean 'stem.w'\?"
    ):
        frozen(DEPTHS, Train(freeze=("stm.w",)), DEPTHS)


@pytest.mark.parametrize("options", [{"freeze": ("*",)}, {"freeze_depth": 1.0}])
def test_freezing_everything_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="leave nothing to train: all 7 parameters are frozen"):
        frozen(DEPTHS, Train(**options), DEPTHS)


def test_unfreezing_without_anything_frozen_is_refused() -> None:
    with pytest.raises(OptionError, match=r"train: unfreeze=0.5 has nothing to release"):
        frozen(DEPTHS, Train(unfreeze=0.5), DEPTHS)


def test_layers_are_released_one_by_one_from_the_output() -> None:
    train = Train(freeze_depth=0.75, unfreeze=0.6)
    stays = frozen(DEPTHS, train, DEPTHS)
    at = {p: released(train, DEPTHS, stays, p) for p in (0.0, 0.19, 0.21, 0.41, 0.6, 1.0)}
    assert at[0.0] == at[0.19] == frozenset()
    assert at[0.21] == {"two.w"}
    assert at[0.41] == {"two.w", "one.w", "one.b"}
    assert at[0.6] == at[1.0] == stays


def test_what_is_released_stays_released() -> None:
    train = Train(freeze_depth=0.75, unfreeze=0.7)
    stays = frozen(DEPTHS, train, DEPTHS)
    steps = [released(train, DEPTHS, stays, step / 20) for step in range(21)]
    assert all(before <= after for before, after in pairwise(steps))


def test_without_unfreeze_nothing_is_ever_released() -> None:
    train = Train(freeze_depth=0.5)
    assert released(train, DEPTHS, frozen(DEPTHS, train, DEPTHS), 1.0) == frozenset()
