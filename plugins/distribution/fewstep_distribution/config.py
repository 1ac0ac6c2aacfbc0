"""Configs of the distribution-matching objectives."""

from __future__ import annotations

from pydantic import Field

from fewstep.core.times import TimeSampler
from fewstep.methods.point import NoisyConfig, Strengths


class CriticConfig(NoisyConfig):
    """What every objective with a critic can be told."""

    steps: int = Field(1, ge=1, description="steps of the student's sampler, each trained on the states that it meets")
    critic_ratio: int = Field(5, ge=1, description="updates of the critic for each one of the student")
    critic_lr: float = Field(1.0, gt=0, description="the critic's factor on train.lr")
    guidance: Strengths = Field(
        None, description="teacher's w in (1 + w) c - w u, of a list one value a step; none: the teacher's own"
    )
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"),
        description="distribution of the time that noise is put on the samples for",
    )


class DMD2Config(CriticConfig):
    """Distribution matching."""


class SiDConfig(CriticConfig):
    """Score identity distillation."""

    alpha: float = Field(
        1.0, ge=0, description="share of the plain squared difference that is taken off; published: 1.0 to 1.2"
    )
