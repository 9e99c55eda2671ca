"""One file per family of operators; each holds `RULES`, operator -> rule (see `tracing.Rule`)."""

from __future__ import annotations

from compressor.channels.rules import (
    attention,
    contracting,
    control_flow,
    convolution,
    elementwise,
    fused,
    fused_attention,
    fused_quantized,
    generating,
    indexing,
    linear,
    normalization,
    partitioning,
    quantized,
    recurrent,
    reducing,
    repeating,
    reshaping,
    spatial,
)
from compressor.channels.tracing import Rule

_FAMILIES = (
    *(
        attention,
        contracting,
        control_flow,
        convolution,
        elementwise,
        fused,
        fused_attention,
        fused_quantized,
    ),
    *(generating, indexing, linear, normalization, partitioning, quantized, recurrent, reducing, repeating),
    *(reshaping, spatial),
)
RULES: dict[str, Rule] = {operator: rule for family in _FAMILIES for operator, rule in family.RULES.items()}
"""Operators of other domains are keyed as "com.microsoft.Gelu"."""
