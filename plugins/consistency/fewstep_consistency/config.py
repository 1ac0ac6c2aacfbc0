"""Configs of the consistency objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.core.times import TimeSampler
from fewstep.methods.point import GuidedConfig
from fewstep.methods.residual import TangentConfig
from fewstep.methods.targets import TargetConfig


class OneTimeConfig(GuidedConfig):
    """Keys of every objective of this plugin."""

    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"), description="distribution of the training time"
    )
    reduction: Literal["element", "sample"] = Field(
        "sample", description="loss averaged over samples, or over all elements (longer samples count more)"
    )


class BaseConfig(OneTimeConfig, TargetConfig):
    """Keys of every objective that compares two jumps."""

    interval: float = Field(0.02, gt=0, lt=1, description="D between the two neighbouring times")
    loss: Literal["l2", "pseudo-huber"] = Field("pseudo-huber", description="distance between the two jumps")
    huber: float = Field(0.03, gt=0, description="c of the pseudo-Huber distance, on the scale of one element")
    weight: Literal["none", "interval", "velocity"] = Field(
        "velocity",
        description="factor of the distance: 1, 1/D (iCT), or 1/(span D) with span = t - phase end, which gives the "
        "gradient of velocity matching",
    )


class ConsistencyConfig(BaseConfig):
    """Consistency distillation to the data."""

    kind: Literal["discrete", "continuous"] = Field(
        "discrete", description="two jumps D apart, or their limit for D to 0, by jvp (divided by D)"
    )
    sampler: Literal["consistency", "euler"] = Field(
        "consistency",
        description="sampler for several steps: consistency puts noise on the predicted data again, euler follows F",
    )

    noise: float = Field(1.0, ge=0, le=1, description="share of fresh noise in that noise (sampler consistency)")

    @model_validator(mode="after")
    def _limit(self) -> ConsistencyConfig:
        if self.kind == "continuous" and self.target == "ema":
            raise ValueError("kind 'continuous' has no second network: target must be 'student'")
        if self.kind == "continuous" and self.loss != "l2":
            raise ValueError("kind 'continuous' knows loss 'l2' alone")
        return self


class PhasedConfig(BaseConfig):
    """Phased consistency distillation."""

    phases: int = Field(4, ge=1, description="number of phases, and of sampling steps")


class ECTConfig(BaseConfig):
    """Easy Consistency Tuning: consistency distillation or training with an interval that shrinks over the run."""

    interval: float = Field(0.5, gt=0, lt=1, description="D in the first stage; with shape level, relative to t")
    q: float = Field(2.0, gt=1, description="factor by which D shrinks from one stage to the next")
    stages: int = Field(8, ge=1, description="number of stages, of equal length; 1: D is constant")
    shape: Literal["level", "constant"] = Field(
        "level", description="D grows with t (ECT), or is the same at all times (iCT)"
    )


class SCMConfig(OneTimeConfig, TangentConfig):
    """Continuous-time consistency (sCM)."""

    warmup: float = Field(
        0.1,
        ge=0,
        description="warm-up of dF/dt: below 1 a share of the run, from 1 on a number of iterations",
    )


class LCMConfig(BaseConfig):
    """Latent consistency distillation: a grid of times, and an EMA network for the target."""

    target: Literal["student", "ema"] = Field(
        "ema", description="network that predicts the target: the student with stop-gradient, or its EMA"
    )
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="grid", points=50), description="distribution of the training time"
    )


class TCMConfig(BaseConfig):
    """Truncated consistency: the student learns only times from ``boundary`` to 1."""

    boundary: float = Field(0.5, gt=0, lt=1, description="t', the smallest time that the student learns")
    boundary_share: float = Field(0.25, gt=0, lt=1, description="share of samples at t = boundary")
    boundary_weight: float = Field(
        1.0, gt=0, description="weight of those samples' mean loss; 0.1 is enough for a run with train.start"
    )

    @model_validator(mode="after")
    def _room_below(self) -> TCMConfig:
        if self.interval >= self.boundary:
            raise ValueError(f"interval must be below boundary, got {self.interval:g} and {self.boundary:g}")
        return self
