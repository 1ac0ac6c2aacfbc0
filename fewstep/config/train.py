"""``TrainConfig``: the ``train`` table of a run. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from fewstep.config.base import Strict

Rate = Annotated[float, Field(ge=0, lt=1)]


class LoRAConfig(Strict):
    """Low-rank adapters in place of training all weights."""

    rank: int = Field(
        default=0,
        ge=0,
        description="rank of the trained update that is added to each frozen weight; 0: train all weights",
    )
    alpha: float | None = Field(
        default=None, gt=0, le=1e6, description="the update is scaled by alpha / rank; none: alpha = rank"
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="linear layers that get an update, each the end of a layer's name or a regular expression; empty: "
        "the backbone's choice (TRELLIS: those of attention and feed-forward networks; others: all)",
    )


class TrainConfig(Strict):
    """How a run is trained: length, optimiser, precision, EMA and what it writes."""

    steps: int = Field(default=1000, ge=1, description="optimiser iterations")
    start: Path | None = Field(
        default=None,
        description="student whose weights training starts from instead of the teacher's: a run, or a student's folder",
    )
    batch_size: int = Field(default=16, ge=1, description="samples in a micro-batch")
    accumulate: int = Field(
        default=1, ge=1, description="micro-batches per iteration, which sees batch_size x accumulate samples"
    )
    optimizer: Literal["adamw", "fused", "adamw8bit"] = Field(
        default="adamw",
        description="adamw: torch's AdamW (fused on CUDA); fused: torch's fused AdamW on any device; adamw8bit: "
        "AdamW of bitsandbytes with 8-bit states (extra 'optim')",
    )
    lr: float = Field(
        default=1e-4, gt=0, le=1, description="AdamW learning rate, which a method may multiply by a factor per network"
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="learning rate after the warm-up: constant, or falling linearly or as a cosine to 0 at the end",
    )
    warmup: int = Field(
        default=0,
        ge=0,
        description="iterations over which the learning rate rises linearly; a shorter run ends while it still rises",
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW weight decay")
    betas: tuple[Rate, Rate] = Field(default=(0.9, 0.999), description="AdamW moment decays")
    clip: Literal["none", "norm", "adaptive"] = Field(
        default="norm",
        description="gradient clipping: none; norm: at clip_norm; adaptive: at clip_norm or a percentile of recent "
        "norms, whichever is smaller",
    )
    clip_norm: float = Field(default=1.0, gt=0, le=1e9, description="largest gradient norm (norm and adaptive)")
    clip_percentile: float = Field(default=95.0, gt=0, le=100, description="adaptive: percentile of the recent norms")
    clip_buffer: int = Field(
        default=1000, ge=1, description="adaptive: number of recent norms; until there are that many, clip_norm alone"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="autocast type; the weights stay float32 (fp16 needs CUDA)"
    )
    graphs: bool = Field(
        default=False,
        description="replay forward and backward pass as a CUDA graph where shapes repeat (not yet run on a GPU)",
    )
    ema: tuple[Rate, ...] = Field(
        default=(),
        description="decay rates of EMAs (moving averages) of the student's weights, in addition to the method's",
    )
    ema_warmup: bool = Field(
        default=False,
        description="limit the decay of every EMA, also the method's, to (1 + n) / (10 + n) at its n-th update",
    )
    export: float | Literal["student"] = Field(
        default="student", description="weights of the exported student: 'student', or the rate of one of its EMAs"
    )
    checkpoint_every: int = Field(
        default=500, ge=1, description="iterations between checkpoints; the last is always written"
    )
    keep: int = Field(default=2, ge=1, description="number of newest checkpoints that are kept")
    log_every: int = Field(default=10, ge=1, description="iterations between rows of metrics.jsonl")
    samples_every: int = Field(
        default=0,
        ge=0,
        description="iterations between sample sheets (pictures of the student's samples, in samples/); 0: none",
    )
    device: str = Field(default="auto", description="torch device; auto: CUDA if available, else the CPU")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; none: torch's own choice")

    @field_validator("export", mode="before")
    @classmethod
    def _rate_or_student(cls, value: Any) -> Any:
        if value == "student":
            return value
        try:
            rate = float(value)
        except (TypeError, ValueError):
            rate = -1.0
        if not 0 <= rate < 1:
            raise ValueError("'student' or the rate of an EMA, at least 0 and below 1")
        return rate
