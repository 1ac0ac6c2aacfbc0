"""Configs of the distribution-matching objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fewstep.config.base import Strict
from fewstep.core.pairs import PairsConfig
from fewstep.core.times import TimeSampler
from fewstep.methods.point import NoisyConfig, PointConfig, Strengths

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


class DriftingConfig(Strict):
    """Drifting."""

    temperatures: tuple[Positive, ...] = Field(
        (0.02, 0.05, 0.2), min_length=1, description="of the affinities, in mean distances; their drifts add up"
    )
    p_uncond: float = Field(0.0, ge=0, le=1, description="share of samples whose student sees no condition")


class SiDConfig(CriticConfig):
    """Score identity distillation."""

    alpha: float = Field(
        1.0, ge=0, description="share of the plain squared difference that is taken off; published: 1.0 to 1.2"
    )


class VSDConfig(CriticConfig):
    """Variational score distillation."""

    critic_lr: float = Field(10.0, gt=0, description="the adapters' factor on train.lr")
    rank: int = Field(8, ge=1, description="rank of the critic's adapters (LoRA) on the teacher's linear layers")


class LADDConfig(Strict):
    """Latent adversarial diffusion distillation."""

    steps: int = Field(1, ge=1, description="steps of the student's sampler, from whose times it is trained to jump")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")
    p_uncond: float = Field(0.0, ge=0, le=1, description="share of samples whose student sees no condition")
    t: TimeSampler = Field(
        default_factory=TimeSampler, description="distribution of the time that samples are judged at"
    )
    taps: tuple[int, ...] = Field(
        (), description="the teacher's inner layers with a head; negative: from the last one; none: all"
    )
    head_lr: float = Field(1.0, gt=0, description="the heads' factor on train.lr")
    head_ratio: int = Field(5, ge=1, description="updates of the heads for each one of the student")
    real: Literal["data", "pairs"] = Field(
        "data", description="what the fakes are told from: the data, or samples of the teacher (published)"
    )
    pairs: PairsConfig = Field(default_factory=PairsConfig, description="those samples (real = pairs)")


class TwinFlowConfig(PointConfig):
    """TwinFlow."""

    guidance: Strengths = Field(
        None, description="teacher's w in (1 + w) c - w u, of a list one value a step; none: the teacher's own"
    )
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"), description="distribution of the training times"
    )
    interval: float = Field(0.01, gt=0, lt=1, description="D of the finite difference")
    near: float = Field(0.05, gt=0, le=1, description="longest interval of the near part, as a share of t")
    clip: float = Field(1.0, gt=0, description="bound of residual and difference, by element")
    weight: float = Field(0.5, ge=0, description="weight of the difference of both velocities")
    power: float = Field(0.5, ge=0, description="p of the weight 1 / m^p, m the sample's mean squared error; 0: none")

    @model_validator(mode="after")
    def _data_has_no_guidance(self) -> TwinFlowConfig:
        if self.velocity == "data" and self.guidance is not None:
            raise ValueError("velocity 'data' has no teacher that could be guided: guidance must be left out")
        return self
