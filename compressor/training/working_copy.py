"""The form of a model that is trained: the same function, with what training needs and a deployed file lacks.

Quantized weights become latent ones, a batch axis that the export fixed is freed, dropout comes back in front of the
output layers, folded BatchNormalization can come back, and values that distillation looks at are outputs. `finished`
takes the trained values back to the model as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from compressor.low_bit.codes import Codes
from compressor.training.batch_axis import free_batch
from compressor.training.dropouts import add_dropout
from compressor.training.exposing import matching, with_outputs
from compressor.training.latent import NONE_KNOWN, NONE_TRAINED, lift, settle
from compressor.training.options import Training
from compressor.training.unfolding import fold_again, unfold


@dataclass(frozen=True)
class WorkingCopy:
    """A model and its trainable form.

    Args:
        source: the model as it came; stays as it was.
        model: what is trained.
        outputs: how many of its outputs are the model's own; they come first.
        values: the values to match, each name -> its place among the outputs.
        restored: the BatchNormalization nodes that were put back.
    """

    source: ir.Model
    model: ir.Model
    outputs: int
    values: Mapping[str, int]
    restored: tuple[str, ...]

    def finished(self, trained: ir.Model, codes: Mapping[str, Codes] = NONE_TRAINED) -> ir.Model:
        """`source` with the values that `trained`, a trained `model`, stands for, and the codes of few bits."""
        if self.restored:
            trained = fold_again(trained, self.restored)
        return settle(trained, self.source, codes)


def working_copy(
    model: ir.Model, options: Training, floats: Mapping[str, ir.TensorProtocol] = NONE_KNOWN
) -> WorkingCopy:
    """The trainable form of a model.

    Args:
        model: stays as it was.
        options: of the training.
        floats: name of stored codes -> the floats that they round, as far as they are known.

    Raises:
        OptionError: a glob of `features` or `attention` matches no value, or there is nothing to put dropout before.
    """
    work = free_batch(lift(model, floats))
    if options.dropout:
        work = add_dropout(work, options.dropout)
    restored: tuple[str, ...] = ()
    if options.batchnorm == "restore":
        work, restored = unfold(work)
    names = matching(work, (*options.features, *options.attention))
    shown = with_outputs(work, names) if names else work
    places = {str(value.name): place for place, value in enumerate(shown.graph.outputs)}
    return WorkingCopy(model, shown, len(model.graph.outputs), {n: places[n] for n in names}, restored)
