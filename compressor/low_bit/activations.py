"""What the passes that code weights share: the samples that they need, and int8 activations behind the codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from compressor.discover import find
from compressor.errors import DataError
from compressor.pipeline import Change, Context

BLOCKED = (
    "block={} gives an output channel several scales, which no int8 kernel takes; give activations='float'"
)


def check_samples(name: str, asked: Mapping[str, bool], context: Context) -> None:
    """Raise DataError when a pass has an option that looks at samples, and there are none.

    Args:
        name: of the pass.
        asked: option, as it is written -> whether the pass has it.
        context: of the run.
    """
    wanted = [option for option, given in asked.items() if given]
    if wanted and context.calibration is None:
        only = len(wanted) == 1 and wanted[0].startswith("activations=")
        other = " Or give activations='float'." if only else ""
        raise DataError(
            f"{name}: {wanted[0]} needs calibration samples. Give --calibration FILE.npz, or calibration=FILE.{other}"
        )


def with_integers(coding: Change, model: ir.Model, context: Context) -> Change:
    """Quantize activations, and the weights that are not coded, as quantize-int8 does; what both steps did.

    Args:
        coding: what was done so far; it touched something.
        model: changed in place.
        context: with calibration samples.
    """
    quantize = find("quantize-int8")().resolved(context)
    integers = quantize.apply(model, context)
    declined = {**integers.declined, **coding.declined}
    figures = {**coding.figures, **integers.figures}
    if reason := declined.pop("model", ""):
        figures["activations"] = f"float: {reason}"
    touched = dict.fromkeys((*coding.touched, *integers.touched))
    latents = {**coding.latents, **integers.latents}
    return replace(coding, touched=tuple(touched), declined=declined, figures=figures, latents=latents)
