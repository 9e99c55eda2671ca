"""Channels of an ONNX graph: which slices of which weights must be cut together, and cutting them.

`find` walks the graph once and writes every axis of every value in *atoms*, runs of channels (`axes`). What a Conv, an
Add or a Reshape says of its axes is a rule per operator (`rules`, one file per family). A *group* is what one atom
stands for in all constants; `cut` removes some of its channels everywhere, and rewrites the lengths that the graph
holds (`sizes`).
"""

from __future__ import annotations

from compressor.channels.cutting import Kept, cut, masked
from compressor.channels.grouping import Found, Group, Member, Role, find

__all__ = ["Found", "Group", "Kept", "Member", "Role", "cut", "find", "masked"]
