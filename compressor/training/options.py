"""The options of training, shared by every pass that trains. No torch here: `compress passes` must not need it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from compressor.pipeline import Pass

Schedule = Literal[
    "constant",
    "step",
    "multistep",
    "exponential",
    "polynomial",
    "cosine",
    "cosine-restarts",
    "one-cycle",
    "plateau",
    "inverse-sqrt",
]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Globs = tuple[str, ...]


class Training(Pass):
    """How a model is trained. A pass that trains is a final subclass; its fields are these and its own."""

    packages = ("torch", "pytorch_lightning", "kornia")

    def __hash__(self) -> int:
        """Agrees with equality; some options are dictionaries, which have no hash."""
        return hash(str(self))

    epochs: int = Field(5, ge=1, description="passes over the training data")
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        32, description="samples per step; 'auto': the largest that fits"
    )
    shuffle: bool = Field(True, description="draw the samples in a new order in every epoch")
    holdout: float = Field(
        0.1, ge=0, lt=1, description="share of the training data to score on when no evaluation data is given"
    )
    augment: dict[str, Any] = Field(
        {},
        description="random changes of image batches, each with its strength: probability of flip, flip_vertical; "
        "degrees of rotate; pixels of crop, cutout; share of scale, colour; deviation of noise; alpha of mixup, cutmix",
    )
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = Field(
        "none", description="weights of the classes in the loss; 'balanced': inverse to their frequency"
    )

    loss: str | tuple[str, ...] = Field(
        "auto",
        description="cross-entropy, bce, mse, mae, huber, cosine, kl or FILE.py:FUNCTION; one, or one per output",
    )
    loss_weights: tuple[NotNegative, ...] = Field((), description="weight of each output's loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of cross-entropy")
    distill: Share | Literal["auto"] = Field(
        "auto",
        description="share of the original's answers in the loss, labels get the rest; 'auto': 0 with labels, else 1",
    )
    temperature: Positive = Field(
        2.0, description="softens the classes of original and student in distillation"
    )
    features: Globs = Field((), description="values of the graph to match with the original's, by name")
    feature_weight: NotNegative = Field(1.0, description="weight of matching `features`")
    attention: Globs = Field((), description="values whose attention maps are matched with the original's")
    attention_weight: NotNegative = Field(1.0, description="weight of matching `attention`")
    teacher: Literal["auto", "onnxruntime", "torch"] = Field(
        "auto", description="what runs the original in distillation; 'auto': the faster one"
    )
    cache_mb: NotNegative = Field(
        512.0, description="memory for the original's answers, in MB; 0: none are kept"
    )

    optimizer: str = Field("adamw", description="sgd, adam, adamw, rmsprop, adagrad, or MODULE:CLASS")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and rmsprop")
    nesterov: bool = Field(False, description="Nesterov momentum in sgd")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of adam and adamw")
    weight_decay: NotNegative = Field(
        0.01, description="decoupled in adamw and sgd-like in the others; no bias, no norm"
    )
    optimizer_options: dict[str, Any] = Field({}, description="further arguments of the optimizer")
    lr: Positive | Literal["auto"] = Field(
        1e-3, description="peak learning rate; 'auto': found by a range test"
    )
    lr_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the rate per layer from the output to the input"
    )
    lr_for: dict[str, NotNegative] = Field(
        {}, description="factor of the rate by glob over initializer names"
    )

    schedule: Schedule = Field("cosine", description="how the learning rate goes on after the warm-up")
    warmup: NotNegative = Field(0.05, description="linear warm-up: below 1 a share of the steps, else steps")
    min_lr: Share = Field(
        0.0,
        description="where polynomial, cosine, its restarts, one-cycle and plateau end, as a share of the peak",
    )
    milestones: tuple[Share, ...] = Field((0.5, 0.75), description="of multistep, as shares of the training")
    step: float = Field(0.3, gt=0, le=1, description="of step: every this share of the training")
    gamma: float = Field(
        0.1, gt=0, le=1, description="factor of step, multistep, plateau; of exponential, over all"
    )
    power: Positive = Field(1.0, description="of polynomial")
    cycles: int = Field(3, ge=1, description="of cosine-restarts")
    plateau_patience: int = Field(
        2,
        ge=0,
        description="of plateau: the rate falls after more than this many epochs without a better score",
    )

    l1: NotNegative = Field(0.0, description="weight of the sum of absolute weights in the loss")
    l2: NotNegative = Field(0.0, description="weight of half the sum of squared weights in the loss")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout in front of the layers that give the outputs"
    )
    max_norm: NotNegative = Field(0.0, description="largest l2 norm of an output channel's weights; 0: none")
    batchnorm: Literal["train", "frozen", "restore"] = Field(
        "train",
        description="statistics of BatchNormalization: trained on, left alone, or put back where the export folded it",
    )

    accumulate: int = Field(1, ge=1, description="batches per optimizer step")
    clip_norm: NotNegative = Field(0.0, description="largest norm of all gradients together; 0: none")
    clip_value: NotNegative = Field(0.0, description="largest absolute gradient; 0: none")

    initialize: dict[str, Literal["he", "xavier", "orthogonal", "uniform", "normal"]] = Field(
        {}, description="draw new weights before training, by glob over initializer names"
    )
    freeze: Globs = Field((), description="initializers that stay as they are")
    freeze_depth: Share = Field(
        0.0, description="share of the layers, counted from the input, that stays as it is"
    )
    unfreeze: Share = Field(
        0.0, description="release frozen layers one by one, from the output, over this share of time"
    )
    keep_zeros: bool = Field(True, description="weights that are exactly zero stay zero")
    learn_ranges: Literal["auto"] | bool = Field(
        "auto",
        description="train the scales of quantizers too (LSQ); 'auto': where weights have few bits",
    )
    progressive: Literal["none", "layers", "fraction", "anneal"] = Field(
        "none",
        description="how weights get their few bits in training: at once, the least sensitive layers first, the "
        "largest weights of each layer first, or gradually all",
    )
    progressive_steps: int = Field(4, ge=1, description="steps of layers and fraction")
    progressive_end: Positive = Field(
        0.5, le=1, description="share of the training after which all weights have few bits"
    )

    replay: Share = Field(0.0, description="share of each batch that comes from the old data")
    lwf: NotNegative = Field(0.0, description="weight of keeping the original's answers on new data")
    ewc: NotNegative = Field(
        0.0, description="weight of staying near the original where the old data needs it"
    )

    patience: int = Field(0, ge=0, description="stop after this many epochs without a better score; 0: never")
    keep: Literal["best", "last"] = Field("best", description="which epoch's weights are the result")
    average: Literal["none", "ema", "swa"] = Field("none", description="average the weights of many steps")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="of ema, per step")
    swa_start: Share = Field(0.75, description="share of the training after which swa begins")

    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; 'auto': cuda when torch sees one")
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="'auto': bf16 on cuda, else 32 bits"
    )
    devices: int = Field(1, ge=1, description="processes on this machine, one per device")
    nodes: int = Field(1, ge=1, description="machines")
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="how devices share the work")
