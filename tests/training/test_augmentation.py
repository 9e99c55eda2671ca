"""Random changes of image batches: each changes what it says, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.data.inputs import Input
from compressor.errors import OptionError
from compressor.training.augment_options import AUGMENT, augment_strengths
from compressor.training.augmentation import Augmenter, augmenter

F32 = np.dtype(np.float32)
NCHW = Input("x", F32, ("n", 3, 8, 12))
NHWC = Input("x", F32, ("n", 8, 12, 3))
VECTOR = Input("v", F32, ("n", 5))
X = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 3, 8, 12)).astype(np.float32))
LABELS = torch.arange(64) % 5


def changed(augment: Mapping[str, Any], x: Tensor = X, step: int = 0, seed: int = 0) -> Tensor:
    """The images after these changes; labels must stay as they are."""
    inputs, labels = augmenter(augment, [NCHW], seed)((x,), LABELS, 0, step)
    assert labels is LABELS
    assert inputs[0].shape == x.shape
    return inputs[0]


def same(x: Tensor, y: Tensor) -> Tensor:
    """[n]: whether the images are equal."""
    return (x == y).flatten(1).all(1)


# --- geometry ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "axis"), [("flip", 3), ("flip_vertical", 2)])
def test_a_flip_mirrors_each_image_with_its_probability(name: str, axis: int) -> None:
    assert torch.equal(changed({name: 1}), X.flip(axis))
    half = changed({name: 0.5})
    mirrored = same(half, X.flip(axis))
    assert torch.equal(mirrored, ~same(half, X))
    # 64 draws of probability 1/2: mean 32, four standard deviations are 16.
    assert 16 < int(mirrored.sum()) < 48


def blob(height: int = 41, width: int = 41, down: float = 8, across: float = 0) -> Tensor:
    """[16, 1, height, width]: a smooth spot off the centre, in pixels."""
    y = torch.arange(height)[:, None] - (height - 1) / 2 - down
    x = torch.arange(width)[None] - (width - 1) / 2 - across
    return torch.exp(-(x**2 + y**2) / 8).expand(16, 1, height, width)


def centroid(images: Tensor) -> tuple[Tensor, Tensor]:
    """([n] down, [n] across) from the centre, in pixels."""
    height, width = images.shape[2:]
    mass = images.sum((1, 2, 3))
    y = (images.sum((1, 3)) * (torch.arange(height) - (height - 1) / 2)).sum(1) / mass
    x = (images.sum((1, 2)) * (torch.arange(width) - (width - 1) / 2)).sum(1) / mass
    return y, x


@pytest.mark.parametrize("shape", [(41, 41), (33, 57)])
def test_a_rotation_turns_about_the_centre_by_at_most_its_angle(shape: tuple[int, int]) -> None:
    y, x = centroid(changed({"rotate": 30}, blob(*shape)))
    angles = torch.rad2deg(torch.atan2(x, y))
    assert angles.abs().max() <= 30.1  # a tenth of a degree for bilinear sampling
    assert angles.max() > 10
    assert angles.min() < -10
    torch.testing.assert_close(torch.hypot(x, y), torch.full((16,), 8.0), atol=0.05, rtol=0)


def test_a_scale_makes_images_larger_and_smaller_about_the_centre_by_at_most_its_fraction() -> None:
    y, x = centroid(changed({"scale": 0.25}, blob()))
    factors = y / 8
    assert factors.min() > 0.745
    assert factors.max() < 1.255
    assert factors.min() < 0.9
    assert factors.max() > 1.1
    torch.testing.assert_close(x, torch.zeros(16), atol=1e-3, rtol=0)


def test_a_crop_moves_each_image_by_at_most_its_padding_and_fills_with_zeros() -> None:
    moved = changed({"crop": 2})
    wide = torch.nn.functional.pad(X, (2, 2, 2, 2))
    offsets = set()
    for got, padded in zip(moved, wide, strict=True):
        matching = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(got, padded[:, top : top + 8, left : left + 12])
        ]
        assert len(matching) == 1
        offsets.add(matching[0])
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(5))


# --- values --------------------------------------------------------------------------------------------------


def test_noise_is_normal_with_its_standard_deviation() -> None:
    noise = changed({"noise": 0.3}) - X
    # 18,432 draws: the error of the standard deviation is 0.3 / sqrt(2 * 18432) = 0.0016, that of the mean 0.0022.
    assert noise.std().item() == pytest.approx(0.3, abs=4 * 0.0016)
    assert abs(noise.mean().item()) < 4 * 0.0022
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert kurtosis.item() == pytest.approx(3, abs=4 * math.sqrt(24 / 18432))
    assert not torch.equal(noise[0], noise[1])


def test_a_cutout_zeroes_one_square_of_its_side_in_all_channels() -> None:
    cut = changed({"cutout": 3}, X.abs() + 1)
    zero = cut == 0
    assert torch.equal(cut[~zero], (X.abs() + 1)[~zero])
    assert torch.equal(zero.all(1), zero.any(1))
    holes = zero.any(1)
    assert torch.equal(holes.sum((1, 2)), torch.full((64,), 9))
    for hole in holes:
        down, across = (hole.any(axis).nonzero() for axis in (1, 0))
        assert down[-1] - down[0] == across[-1] - across[0] == 2
    assert len({tuple(hole.flatten().tolist()) for hole in holes}) > 20


def test_a_cutout_of_the_whole_image_is_possible_and_a_larger_one_refused() -> None:
    square = torch.ones(2, 1, 4, 4)
    assert not changed({"cutout": 4}, square).any()
    with pytest.raises(OptionError, match=r"cutout=5 is larger than the images of 4 x 4 pixels"):
        changed({"cutout": 5}, square)


def test_colour_keeps_the_range_of_the_data_and_moves_nothing() -> None:
    x = X * 2 - 5
    jittered = changed({"colour": 0.4}, x)
    assert jittered.min() >= x.min() - 1e-5  # float32 rounding of the way to [0, 1] and back
    assert jittered.max() <= x.max() + 1e-5
    assert not same(jittered, x).any()
    flat = torch.full((4, 3, 8, 8), 1.0)
    flat[:, :, 2:4, 3:5] = 2.0
    patch = changed({"colour": 0.4}, flat)
    for image in patch:
        assert len(image.unique()) == 2
        assert image[0, 2, 3] > image[0, 0, 0]


def test_colour_changes_brightness_contrast_and_saturation_by_at_most_its_strength() -> None:
    x = X.clamp(-2, 2) / 40 + 0.5  # far from 0 and 1, so that nothing is clamped but the first image
    x[0, :, 0, 0], x[0, :, 0, 1] = 0, 1
    jittered = changed({"colour": 0.3}, x)[1:]

    def parts(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        return grey.mean((1, 2, 3)), grey.std((1, 2, 3)), (images - grey).std((1, 2, 3))

    mean, spread, colourfulness = (
        after / before for after, before in zip(parts(jittered), parts(x[1:]), strict=True)
    )
    for factor in (mean, spread / mean, colourfulness / spread):
        assert factor.min() > 0.699
        assert factor.max() < 1.301
        assert factor.std() > 0.1  # that of an even draw from [0.7, 1.3] is 0.173


def test_colour_of_grey_and_of_constant_images_is_finite() -> None:
    for x in (X[:, :1], torch.full((2, 3, 4, 4), 7.0), X[:, :2]):
        assert changed({"colour": 0.5}, x).isfinite().all()
    assert torch.equal(changed({"colour": 0.5}, torch.full((2, 3, 4, 4), 7.0)), torch.full((2, 3, 4, 4), 7.0))


# --- mixtures ------------------------------------------------------------------------------------------------


def mixed(
    augment: Mapping[str, Any], labels: Tensor | None, classes: int | None, step: int = 0
) -> tuple[Any, Any]:
    inputs, made = augmenter(augment, [NCHW], 0, classes)((X,), labels, 0, step)
    return inputs[0], made


def test_mixup_labels_are_mixed_as_the_pixels_are() -> None:
    numbers = torch.eye(64)  # each sample its own class, so that the label says who was mixed
    for step in range(5):
        x, labels = mixed({"mixup": 1.0}, numbers, None, step)
        torch.testing.assert_close(labels.sum(1), torch.ones(64))
        torch.testing.assert_close(x.flatten(1), labels @ X.flatten(1))
        shares = labels.max(1).values
        assert (labels > 0).sum(1).max() <= 2
        assert shares.min() >= 0.5


def test_mixup_follows_the_beta_distribution() -> None:
    def shares(alpha: float) -> np.ndarray:
        made = [mixed({"mixup": alpha}, torch.eye(64), None, step)[1].diagonal() for step in range(200)]
        return np.array([labels.min().item() for labels in made])

    # Var Beta(a, a) = 1 / (8a + 4); of 200 draws the standard error of the variance is below a tenth of 1/12.
    for alpha in (1.0, 8.0):
        assert np.var(shares(alpha)) == pytest.approx(1 / (8 * alpha + 4), rel=0.35)


def test_cutmix_pastes_one_rectangle_and_labels_say_its_share_of_the_area() -> None:
    pasted = 0
    for step in range(20):
        x, labels = mixed({"cutmix": 1.0}, torch.eye(64), None, step)
        own = (x == X).all(1)
        shares = labels.diagonal()
        moved = shares < 1
        torch.testing.assert_close(own.float().mean((1, 2))[moved], shares[moved])
        partner = (labels - torch.diag(shares)).argmax(1)
        outside = ~own[moved]
        for image, hole, other in zip(x[moved], outside, X[partner[moved]], strict=True):
            assert torch.equal(image[:, hole], other[:, hole])
            rows, columns = hole.any(1), hole.any(0)
            assert torch.equal(hole, rows[:, None] & columns[None])
        pasted += int(moved.any())
    assert pasted > 10


def test_class_ids_become_shares_of_the_classes() -> None:
    for name in ("mixup", "cutmix"):
        for labels in (LABELS, LABELS[:, None]):
            _, made = mixed({name: 1.0}, labels, 5)
            _, traced = mixed({name: 1.0}, torch.eye(64), None)
            assert made.dtype == torch.float32
            torch.testing.assert_close(made, traced @ torch.nn.functional.one_hot(LABELS, 5).float())


def test_labels_that_are_values_are_mixed_and_keep_their_shape() -> None:
    for labels in (torch.rand(64), torch.rand(64, 1), LABELS):
        _, made = mixed({"mixup": 1.0}, labels, None)
        _, traced = mixed({"mixup": 1.0}, torch.eye(64), None)
        torch.testing.assert_close(made, traced @ labels.float())


def test_without_labels_only_the_images_are_mixed() -> None:
    x, labels = mixed({"mixup": 1.0}, None, 5)
    assert labels is None
    assert not same(x, X).all()


def test_of_mixup_and_cutmix_each_batch_gets_one() -> None:
    both = [mixed({"mixup": 1.0, "cutmix": 1.0}, None, None, step)[0] for step in range(12)]
    whole = [bool(((x == X).flatten(1).float().mean(1) > 0.05).any()) for x in both]
    assert any(whole)
    assert not all(whole)


# --- what is left alone, and what decides --------------------------------------------------------------------

EVERY = {
    "flip": 0.5,
    "flip_vertical": 0.5,
    "rotate": 10,
    "scale": 0.1,
    "crop": 2,
    "colour": 0.2,
    "noise": 0.1,
    "cutout": 2,
}


def test_the_changes_depend_on_seed_epoch_and_step_and_on_no_global_state() -> None:
    change = augmenter({**EVERY, "mixup": 0.4}, [NCHW], 3, 5)

    def made(epoch: int, step: int) -> Tensor:
        return change((X,), LABELS, epoch, step)[0][0]

    torch.manual_seed(1)
    first, state = made(2, 5), torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(5)
    assert torch.equal(first, made(2, 5))
    torch.manual_seed(1)
    made(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (made(2, 6), made(3, 5), changed(EVERY, seed=4)):
        assert not torch.equal(first, other)


def test_the_batch_that_is_given_stays_as_it_is() -> None:
    before = X.clone()
    for name, strength in EVERY.items():
        changed({name: strength})
    mixed({"cutmix": 1.0}, LABELS, 5)
    mixed({"mixup": 1.0}, LABELS, 5)
    assert torch.equal(X, before)


@pytest.mark.parametrize("name", AUGMENT)
def test_a_strength_of_zero_changes_nothing(name: str) -> None:
    inputs, labels = augmenter({name: 0}, [VECTOR])((X,), LABELS, 0, 0)
    assert inputs[0] is X
    assert labels is LABELS


@pytest.mark.parametrize("name", EVERY)
def test_each_change_changes_something(name: str) -> None:
    assert not torch.equal(changed({name: EVERY[name]}), X)


def test_channels_last_images_are_changed_as_channels_first_ones() -> None:
    last = augmenter(EVERY, [NHWC])((X.movedim(1, 3),), LABELS, 0, 0)[0][0]
    assert torch.equal(last, changed(EVERY).movedim(1, 3))
    assert last.is_contiguous()


def test_the_element_type_stays() -> None:
    half = Input("x", np.dtype(np.float16), NCHW.dims)
    made = augmenter(EVERY, [half])((X.half(),), LABELS, 0, 0)[0][0]
    assert made.dtype == torch.float16
    torch.testing.assert_close(made, changed(EVERY, X.half().float()).half())


def test_other_inputs_are_left_alone() -> None:
    v = torch.rand(64, 5)
    inputs, _ = augmenter({"flip": 1}, [VECTOR, NCHW])((v, X), LABELS, 0, 0)
    assert inputs[0] is v
    assert torch.equal(inputs[1], X.flip(3))


@pytest.mark.parametrize("dims", [("n", 1, 8, 8), ("n", "c", "h", "w"), ("n", 2, 6, 6), ("n", 8, 8, 1)])
def test_inputs_of_rank_4_with_few_channels_are_images(dims: tuple[int | str, ...]) -> None:
    assert isinstance(augmenter({"flip": 1}, [Input("x", F32, dims)]), Augmenter)


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "specs",
    [
        [VECTOR],
        [Input("x", F32, ("n", 16, 8, 9))],
        [Input("x", np.dtype(np.uint8), NCHW.dims)],
        [Input("x", F32, None)],
        [NCHW, Input("z", F32, NCHW.dims)],
    ],
)
def test_a_model_without_one_image_input_is_refused(specs: list[Input]) -> None:
    with pytest.raises(
        OptionError, match=r"augment needs an image input: one float input .* The model has '"
    ):
        augmenter({"flip": 0.5}, specs)


def test_samples_that_are_more_than_an_image_cannot_be_mixed() -> None:
    with pytest.raises(
        OptionError, match=r"mixup and cutmix mix whole samples.* has 2 inputs. Leave them out"
    ):
        augmenter({"mixup": 0.2}, [NCHW, VECTOR])


@pytest.mark.parametrize("name", ["flip", "flip_vertical", "rotate", "scale", "crop", "mixup", "cutmix"])
def test_pixels_that_have_labels_of_their_own_are_not_moved(name: str) -> None:
    dense = torch.zeros(64, 8, 12, dtype=torch.int64)
    with pytest.raises(
        OptionError, match=rf"{name} would move pixels away from their labels, which are \[64, 8, 12\]"
    ):
        augmenter({name: 0.5 if name != "crop" else 2}, [NCHW])((X,), dense, 0, 0)


def test_pixels_that_have_labels_of_their_own_may_change_their_colour() -> None:
    dense = torch.zeros(64, 8, 12, dtype=torch.int64)
    inputs, labels = augmenter({"colour": 0.2, "noise": 0.1, "cutout": 2}, [NCHW])((X,), dense, 0, 0)
    assert labels is dense
    assert not torch.equal(inputs[0], X)


def test_an_unknown_change_gets_a_suggestion() -> None:
    with pytest.raises(OptionError, match=r"augment has no 'color'. Did you mean 'colour'\?"):
        augment_strengths({"color": 0.2})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("flip", 1.1, r"a probability in \[0, 1\]"),
        ("flip", True, r"a probability in \[0, 1\]"),
        ("flip_vertical", -0.1, "a probability"),
        ("rotate", 181, r"degrees, in \[0, 180\]"),
        ("scale", 1, r"in \[0, 1\)"),
        ("crop", 1.5, "a whole number of pixels"),
        ("cutout", -1, "a whole number of pixels"),
        ("colour", "much", r"in \[0, 1\]"),
        ("noise", -1, "a standard deviation"),
        ("noise", float("nan"), "a standard deviation"),
        ("noise", float("inf"), "a standard deviation"),
        ("mixup", -1, "the alpha of a Beta"),
        ("cutmix", None, "the alpha of a Beta"),
    ],
)
def test_a_strength_out_of_range_is_refused(name: str, value: object, wanted: str) -> None:
    with pytest.raises(OptionError, match=rf"augment: {name} must be .*{wanted}.*, got {value!r}"):
        augment_strengths({name: value})
