"""Configs of the distribution-matching objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.core.times import TimeSampler
from fewstep.methods.point import NoisyConfig, Strengths

Positive = Annotated[float, Field(gt=0)]


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


class AdversarialConfig(CriticConfig):
    """What those with adversarial terms can be told besides."""

    gan: float = Field(
        0.0,
        ge=0,
        description="weight of the student's adversarial term; 0: none, and no head (published: 0.001 to 0.003)",
    )
    gan_critic: float = Field(0.01, gt=0, description="weight of the head's loss beside the critic's flow matching")
    head_lr: float = Field(1.0, gt=0, description="the head's factor on train.lr")
    taps: tuple[int, ...] = Field(
        (-1,), min_length=1, description="the critic's inner layers that the head reads; negative: from the last one"
    )


class DMD2Config(AdversarialConfig):
    """Distribution matching."""


class FDistillConfig(AdversarialConfig):
    """Distribution matching for another divergence."""

    divergence: Literal["forward-kl", "jensen-shannon", "softened-reverse-kl", "hellinger", "jeffreys"] = Field(
        "forward-kl", description="divergence of fakes and teacher; reverse KL is dmd2"
    )
    clip: tuple[Positive, Positive] = Field((0.1, 20.0), description="bounds of the density ratio")
    gan: float = Field(0.001, ge=0, description="weight of the student's adversarial term; the head is there for 0 too")


class SiDConfig(CriticConfig):
    """Score identity distillation."""

    alpha: float = Field(
        1.0, ge=0, description="share of the plain squared difference that is taken off; published: 1.0 to 1.2"
    )
