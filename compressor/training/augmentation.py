"""Random changes of the image batches that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compressor.data.inputs import Input
from compressor.errors import OptionError
from compressor.training.augment_options import augment_strengths
from compressor.training.image_changes import CHANGES, Draw, cutmix, mixup

_MIXES = {"mixup": mixup, "cutmix": cutmix}
_MOVES = frozenset({"flip", "flip_vertical", "rotate", "scale", "crop", "mixup", "cutmix"})
_AUGMENT = 2  # keeps these draws apart from those of the order and of the replay


@dataclass(frozen=True)
class Augmenter:
    """Changes a batch as a function of nothing but the seed, the epoch and the step.

    Args:
        strengths: name -> strength, in the order in which the changes are made.
        image: which input is changed; -1 when nothing is.
        channels_last: whether that input is [n, height, width, channels].
        seed: 0 or more.
        classes: how many classes integer labels count; None when labels are values.
    """

    strengths: Mapping[str, float]
    image: int
    channels_last: bool
    seed: int
    classes: int | None

    def __call__(
        self, inputs: Sequence[Tensor], labels: Tensor | None, epoch: int, step: int
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """(the inputs with the image changed, the labels); new tensors where something is changed.

        Mixup and cutmix make class ids to shares of the classes, float32 [n, classes], which is what cross-entropy
        and kl take, and mix labels that are values as the images are mixed. When both are asked for, each batch gets
        one of them.

        Args:
            inputs: of the model, in graph order, on any device.
            labels: as in TrainingBatch; None is left as it is.
            epoch: the number of the epoch.
            step: the number of the batch in it.

        Raises:
            OptionError: pixels are moved or mixed where each pixel has a label, or a square is larger than the image.
        """
        if not self.strengths:
            return tuple(inputs), labels
        self._require_one_label(labels)
        draw = np.random.default_rng([self.seed, epoch, step, _AUGMENT])
        given = inputs[self.image]
        x = (given.movedim(3, 1) if self.channels_last else given).to(torch.float32)
        for name, strength in self.strengths.items():
            if name in CHANGES:
                x = CHANGES[name](x, strength, draw)
        x, labels = self._mixed(x, labels, draw)
        x = (x.movedim(1, 3) if self.channels_last else x).to(given.dtype).contiguous()
        return (*inputs[: self.image], x, *inputs[self.image + 1 :]), labels

    def _mixed(self, x: Tensor, labels: Tensor | None, draw: Draw) -> tuple[Tensor, Tensor | None]:
        asked = [name for name in _MIXES if name in self.strengths]
        if not asked:
            return x, labels
        name = asked[int(draw.integers(len(asked)))]
        x, partners, share = _MIXES[name](x, self.strengths[name], draw)
        if labels is None:
            return x, None
        if self.classes is not None and not labels.is_floating_point():
            labels = functional.one_hot(labels.reshape(len(labels)), self.classes)
        labels = labels.to(torch.float32)
        return x, torch.lerp(labels[partners], labels, share)

    def _require_one_label(self, labels: Tensor | None) -> None:
        moving = [name for name in self.strengths if name in _MOVES]
        if labels is not None and labels.ndim > 2 and moving:
            raise OptionError(
                f"augment: {moving[0]} would move pixels away from their labels, which are {list(labels.shape)}. "
                "Leave it out; colour, noise and cutout leave pixels where they are."
            )


def augmenter(
    augment: Mapping[str, Any], specs: Sequence[Input], seed: int = 0, classes: int | None = None
) -> Augmenter:
    """The changes that the option `augment` asks for, of the model's image input.

    Args:
        augment: name -> strength; see `AUGMENT`. Empty: batches are given back as they are.
        specs: the inputs of the model, as in `Samples.specs`.
        seed: 0 or more; processes that share a training take seeds of their own.
        classes: how many classes integer labels count; None when labels are values. For mixup and cutmix.

    Raises:
        OptionError: a name is unknown, a number is out of range, or the model has no image input.
    """
    strengths = augment_strengths(augment)
    if not strengths:
        return Augmenter({}, -1, False, seed, classes)
    images = [number for number, spec in enumerate(specs) if _is_image(spec)]
    if len(images) != 1:
        listed = ", ".join(f"{spec.name!r} {spec}" for spec in specs)
        raise OptionError(
            "augment needs an image input: one float input [n,channels,height,width] or [n,height,width,channels] "
            f"with 1 to 4 channels. The model has {listed}."
        )
    if len(specs) > 1 and strengths.keys() & _MIXES.keys():
        raise OptionError(
            "augment: mixup and cutmix mix whole samples, and only the image of a sample can be mixed, but the model "
            f"has {len(specs)} inputs. Leave them out."
        )
    return Augmenter(strengths, images[0], specs[images[0]].channels_last, seed, classes)


def _is_image(spec: Input) -> bool:
    if spec.dims is None or not spec.image or not spec.floating:
        return False
    channels = spec.dims[3] if spec.channels_last else spec.dims[1]
    return not isinstance(channels, int) or channels in (1, 2, 3, 4)
