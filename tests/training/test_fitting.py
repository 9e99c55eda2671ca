"""Every option of training acts: with it the same training ends elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.runtime import to_bytes
from compressor.training.options import Training
from tests.training.trained import cnn, folded, images, mlp, points, train

ON_POINTS = {
    "epochs": ("", "epochs=3"),
    "batch": ("batch=8", "batch=4"),
    "shuffle": ("shuffle=True", "shuffle=False"),
    "class_weights": ("", "class_weights=(1,2,3)"),
    "label_smoothing": ("", "label_smoothing=0.2"),
    "distill": ("distill=0.2", "distill=0.7"),
    "temperature": ("distill=0.9 temperature=1", "distill=0.9 temperature=4"),
    "features": ("", "features=h"),
    "feature_weight": ("features=h", "features=h feature_weight=3"),
    "optimizer": ("optimizer=sgd", "optimizer=adam"),
    "momentum": ("momentum=0", "momentum=0.9"),
    "nesterov": ("momentum=0.9", "momentum=0.9 nesterov=True"),
    "betas": ("optimizer=adam", "optimizer=adam betas=(0.5,0.9)"),
    "weight_decay": ("weight_decay=0", "weight_decay=0.1"),
    "optimizer_options": ("momentum=0.9", "momentum=0.9 optimizer_options={'dampening':0.5}"),
    "lr": ("lr=0.1", "lr=0.01"),
    "lr_decay": ("", "lr_decay=0.5"),
    "lr_for": ("", "lr_for={'w1':0.1}"),
    "schedule": ("schedule=constant", "schedule=cosine"),
    "warmup": ("warmup=0", "warmup=0.5"),
    "min_lr": ("schedule=cosine", "schedule=cosine min_lr=0.5"),
    "milestones": ("schedule=multistep", "schedule=multistep milestones=(0.1,)"),
    "step": ("schedule=step", "schedule=step step=0.9"),
    "gamma": ("schedule=exponential", "schedule=exponential gamma=0.9"),
    "power": ("schedule=polynomial", "schedule=polynomial power=2"),
    "cycles": ("schedule=cosine-restarts cycles=1", "schedule=cosine-restarts cycles=3"),
    "plateau_patience": (
        "epochs=4 lr=1e-5 schedule=plateau plateau_patience=0",
        "epochs=4 lr=1e-5 schedule=plateau plateau_patience=5",
    ),
    "l1": ("", "l1=0.1"),
    "l2": ("", "l2=0.1"),
    "dropout": ("", "dropout=0.5"),
    "max_norm": ("", "max_norm=0.5"),
    "accumulate": ("accumulate=1", "accumulate=2"),
    "clip_norm": ("", "clip_norm=0.01"),
    "clip_value": ("", "clip_value=0.01"),
    "initialize": ("", "initialize={'w1':he}".replace("he", "'he'")),
    "freeze": ("", "freeze=w1"),
    "freeze_depth": ("", "freeze_depth=0.5"),
    "unfreeze": ("freeze=w1", "freeze=w1 unfreeze=0.5"),
    "lwf": ("", "lwf=2"),
    "keep": ("lr=1e-6 keep=best", "lr=1e-6 keep=last"),
    "average": ("average=none", "average=ema"),
    "ema_decay": ("average=ema ema_decay=0.9", "average=ema ema_decay=0.1"),
    "swa_start": ("average=swa swa_start=0", "average=swa swa_start=0.9"),
    "precision": ("precision='32'", "precision=bf16"),
}
ON_IMAGES = {
    "augment": ("", "augment={'noise':0.5}"),
    "attention": ("", "attention=r"),
    "attention_weight": ("attention=r", "attention=r attention_weight=9"),
    "batchnorm": ("batchnorm=train", "batchnorm=frozen"),
}
ELSEWHERE = {
    "holdout": "test_finetune_data",
    "teacher": "test_finetune_objective: only how fast it is differs",
    "cache_mb": "test_finetune_objective: only how fast it is differs",
    "loss": "test_finetune_objective",
    "loss_weights": "test_finetune_objective",
    "keep_zeros": "test_finetune_constraints",
    "learn_ranges": "test_qat",
    **dict.fromkeys(("progressive", "progressive_steps", "progressive_end"), "test_progression"),
    "replay": "test_finetune_continual",
    "ewc": "test_finetune_continual",
    "patience": "test_finetune_stopping",
    "device": "test_machine",
    "devices": "test_machine",
    "nodes": "test_machine",
    "strategy": "test_machine",
}


def test_no_option_is_without_a_test() -> None:
    assert set(Training.model_fields) == {*ON_POINTS, *ON_IMAGES, *ELSEWHERE}


@pytest.mark.parametrize("option", ON_POINTS)
def test_acts_on_a_dense_model(option: str) -> None:
    one, other = (to_bytes(train(mlp(), points(), text).model) for text in ON_POINTS[option])
    assert one != other


@pytest.mark.parametrize("option", ON_IMAGES)
def test_acts_on_a_convolution(option: str) -> None:
    one, other = (to_bytes(train(cnn(), images(), text).model) for text in ON_IMAGES[option])
    assert one != other


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    options = "dropout=0.3 augment={'flip':0.5,'noise':0.1} average=ema"
    one, same, other = (to_bytes(train(folded(), images(), options, seed=seed).model) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_the_generator_of_the_caller_is_left_as_it_was() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(mlp(), points(), "dropout=0.5")
    assert np.array_equal(torch.rand(3).numpy(), expected.numpy())
