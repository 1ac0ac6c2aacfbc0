"""Configs of the consistency objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.core.times import TimeSampler
from fewstep.methods.point import PointConfig, Strengths
from fewstep.methods.residual import TangentConfig
from fewstep.methods.targets import TargetConfig


class OneTimeConfig(PointConfig):
    """What every method of this plugin can be told."""

    guidance: Strengths = Field(
        None, description="teacher's w in (1 + w) c - w u, of a list one value a step; none: the teacher's own"
    )
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"), description="distribution of the training time"
    )
    reduction: Literal["element", "sample"] = Field(
        "sample", description="loss as mean over samples, or over all elements (a longer sample weighs more)"
    )


class BaseConfig(OneTimeConfig, TargetConfig):
    """What every objective that compares two jumps can be told."""

    interval: float = Field(0.02, gt=0, lt=1, description="D between the two neighbouring times")
    loss: Literal["l2", "pseudo-huber"] = Field("pseudo-huber", description="distance of the two jumps")
    huber: float = Field(0.03, gt=0, description="c of the pseudo-Huber distance, in units of an element")
    weight: Literal["none", "interval", "velocity"] = Field(
        "velocity",
        description="factor of the distance: 1, 1/D (iCT), or 1/(span D), which gives velocity matching's own gradient",
    )


class ConsistencyConfig(BaseConfig):
    """Consistency distillation to the data."""

    kind: Literal["discrete", "continuous"] = Field(
        "discrete", description="two neighbouring jumps, or the limit D to 0 by jvp (weighted as by 1/D)"
    )
    sampler: Literal["consistency", "euler"] = Field(
        "consistency", description="sampling in several steps: fresh noise on the predicted data, or its own direction"
    )

    noise: float = Field(1.0, ge=0, le=1, description="share of that noise that is fresh (sampler consistency)")

    @model_validator(mode="after")
    def _limit(self) -> ConsistencyConfig:
        if self.kind == "continuous" and self.target == "ema":
            raise ValueError("kind 'continuous' has no second network: target must be 'student'")
        if self.kind == "continuous" and self.loss != "l2":
            raise ValueError("kind 'continuous' knows loss 'l2' alone")
        return self


class PhasedConfig(BaseConfig):
    """Phased consistency distillation."""

    phases: int = Field(4, ge=1, description="phases, and the number of sampling steps")


class ECTConfig(BaseConfig):
    """Consistency distillation or training with an interval that shrinks over the run."""

    interval: float = Field(0.5, gt=0, lt=1, description="D in the first stage (shape level: as a share of t)")
    q: float = Field(2.0, gt=1, description="factor by which D shrinks from one stage to the next")
    stages: int = Field(8, ge=1, description="stages of equal length in the run; 1 keeps D")
    shape: Literal["level", "constant"] = Field(
        "level", description="D grows with t, as in ECT, or is the same at all times, as in iCT"
    )


class SCMConfig(OneTimeConfig, TangentConfig):
    """Continuous-time consistency."""

    warmup: float = Field(
        0.1,
        ge=0,
        description="dF/dt is faded in: below 1 over this share of the run, from 1 on over so many iterations",
    )


class LCMConfig(BaseConfig):
    """Consistency distillation with a grid of times and an average as target."""

    target: Literal["student", "ema"] = Field(
        "ema", description="network of the target: the student itself, stopped, or its EMA (moving average)"
    )
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="grid", points=50), description="distribution of the training time"
    )


class TCMConfig(BaseConfig):
    """Consistency distillation of the later times alone."""

    boundary: float = Field(0.5, gt=0, lt=1, description="t', the first time of the student")
    boundary_share: float = Field(0.25, gt=0, lt=1, description="share of samples that lie at the boundary")
    boundary_weight: float = Field(
        1.0, gt=0, description="weight of their mean beside that of the others; 0.1 is enough with train.start"
    )

    @model_validator(mode="after")
    def _room_below(self) -> TCMConfig:
        if self.interval >= self.boundary:
            raise ValueError(f"interval must be below boundary, got {self.interval:g} and {self.boundary:g}")
        return self
