"""Train a sample model and export it. The same seed, packages and kind of processor give the same bytes."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from recipes import Recipe
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_SIZE = 64
OPSET = 18
THREADS = 2


def train(recipe: Recipe, x: NDArray[np.float32], labels: NDArray[np.int64], seed: int) -> nn.Module:
    """A new module trained with AdamW, one learning-rate cycle and label smoothing; in evaluation mode."""
    fix_seed(seed)
    module = recipe.make()
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)
    steps = math.ceil(len(inputs) / BATCH_SIZE) * recipe.epochs
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    module.train()
    for _ in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(inputs)), BATCH_SIZE):
            batch = jitter(inputs[chosen]) if recipe.jitter else inputs[chosen]
            loss = F.cross_entropy(module(batch), targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return module.eval()


def fix_seed(seed: int) -> None:
    """Make what follows repeatable: one seed, a fixed number of threads, deterministic kernels."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


def jitter(images: Tensor) -> Tensor:
    """Every image turned by up to 10 degrees, stretched by up to 10 %, shifted by up to 1/16 of its side.

    Takes N x 1 x H x W, or N x H x W for rows of pixels, and returns the same shape.
    """
    n = len(images)
    angle, scale_x, scale_y, shift_x, shift_y = (torch.rand(5, n) * 2 - 1).unbind()
    angle, scale_x, scale_y = angle * math.radians(10), 1 + 0.1 * scale_x, 1 + 0.1 * scale_y
    row1 = torch.stack([scale_x * angle.cos(), -scale_x * angle.sin(), shift_x / 8], dim=1)
    row2 = torch.stack([scale_y * angle.sin(), scale_y * angle.cos(), shift_y / 8], dim=1)
    side = images.shape[-1]
    planes = images.reshape(n, 1, side, side)
    grid = F.affine_grid(torch.stack([row1, row2], dim=1), list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False).reshape(images.shape)


def export(module: nn.Module, input_name: str, example: Tensor) -> onnx.ModelProto:
    """The module as ONNX by torch's current exporter, axis 0 dynamic and named 'batch', notes removed.

    `example` needs two samples or more: an axis of length 1 is taken for a constant by the exporter.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[input_name],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
        )
    assert program is not None  # only the older exporter returns None
    remove_notes(program.model)
    return program.model_proto


def remove_notes(model: ir.Model) -> None:
    """Drop doc strings and metadata: they hold stack traces and paths of the machine that exported."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
