"""Configs of the flow-map objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.core.times import TimeSampler
from fewstep.methods.point import GuidedConfig
from fewstep.methods.residual import TangentConfig
from fewstep.methods.targets import TargetConfig


class MapConfig(GuidedConfig):
    """Keys of every flow-map objective."""

    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"), description="distribution of the training times"
    )
    gamma: float = Field(
        0.0,
        ge=0,
        le=1,
        description="sampler for several steps: jumps (0), or gamma-sampling with this share of fresh noise",
    )


class FlowMapConfig(MapConfig):
    """Keys of objectives that learn the velocity (s = t) on a share of the samples."""

    apart: float = Field(
        0.5, ge=0, le=1, description="share of samples with s < t; the others have s = t and learn the velocity"
    )


class IMMConfig(MapConfig):
    """Inductive moment matching."""

    particles: int = Field(4, ge=1, description="samples per group, which share their times and are compared")
    gap: float = Field(0.04, gt=0, description="by how much the noise-to-data ratio t / (1 - t) falls from t to r")
    bias: float = Field(5.0, description="b of the weight's factor sigmoid(b - log SNR)")
    power: float = Field(1.0, ge=1, description="a of the weight's factor (1 - t)^a")


class IntervalConfig(FlowMapConfig):
    """Keys of objectives on intervals [s, t] of any length and position."""

    draw: Literal["ends", "length"] = Field(
        "ends",
        description="what objective.t draws: both ends (the larger is t), or the length t - s, at a uniform position",
    )
    to_data: float = Field(0.5, ge=0, le=1, description="share of the samples with s < t whose s is set to 0")
    from_noise: float = Field(0.0, ge=0, le=1, description="share of samples whose t is set to 1")


class AdaptiveConfig(IntervalConfig):
    """Keys of objectives with MeanFlow's adaptive weight."""

    power: float = Field(
        1.0, ge=0, description="p of the adaptive weight 1 / (m + c)^p, m the sample's mean squared error; 0: no weight"
    )
    constant: float = Field(1e-3, gt=0, description="c of the adaptive weight")
    weight: Literal["none", "anyflow"] = Field(
        "none", description="weight of the loss by time: 1, or t sqrt(1 - t) divided by its mean (AnyFlow)"
    )
    central: float | None = Field(
        None, gt=0, lt=0.5, description="dF/dt by a central difference of this D (AnyFlow: 0.005); none: exact"
    )


class AlphaFlowConfig(AdaptiveConfig):
    """AlphaFlow; alpha falls from 1 to 0 along a sigmoid."""

    start: float = Field(0.0, ge=0, le=1, description="point of the run, 0 to 1, at which alpha begins to fall")
    end: float = Field(1.0, gt=0, le=1, description="point of the run at which alpha has reached 0")
    steepness: float = Field(25.0, gt=0, description="steepness of the sigmoid between start and end")
    clamp: float = Field(5e-3, ge=0, lt=0.5, description="alpha within this distance of 0 or 1 is set to it")

    @model_validator(mode="after")
    def _ordered(self) -> AlphaFlowConfig:
        if self.start >= self.end:
            raise ValueError(f"start must be below end, got {self.start:g} and {self.end:g}")
        return self


class SplitConfig(IntervalConfig):
    """SplitMeanFlow."""

    split: Literal["uniform", "midpoint"] = Field("uniform", description="point at which an interval is split")


class ShortcutConfig(FlowMapConfig, TargetConfig):
    """Shortcut models."""

    apart: float = Field(0.25, ge=0, le=1, description="share of samples that learn a jump, not the velocity")
    units: int = Field(128, ge=2, description="the shortest step has length 1 / units; a power of 2")
    target_ema: float = Field(0.999, ge=0, lt=1, description="decay rate of the target's EMA (target = ema)")

    @model_validator(mode="after")
    def _power_of_two(self) -> ShortcutConfig:
        if self.units & (self.units - 1):
            raise ValueError(f"units must be a power of 2, got {self.units}")
        return self


class AYFConfig(IntervalConfig, TangentConfig):
    """Align Your Flow."""

    apart: float = Field(1.0, ge=0, le=1, description="share of samples with s < t; the others learn the velocity")
    kind: Literal["eulerian", "lagrangian"] = Field(
        "eulerian",
        description="derivative of the map in its start time t (EMD), or in its end time s, where the teacher is "
        "evaluated (LMD)",
    )
    derivative: float = Field(
        1.0, gt=0, le=1, description="factor of dF/dt after the warm-up; below 1 regularises (published: 0.99)"
    )

    @model_validator(mode="after")
    def _teacher_at_the_end(self) -> AYFConfig:
        if self.kind == "lagrangian" and self.velocity == "data":
            raise ValueError("kind 'lagrangian' asks the teacher at the end of a jump: velocity must be 'teacher'")
        return self
