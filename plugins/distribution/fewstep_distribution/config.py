"""Configs of the distribution-matching objectives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.base import Strict
from fewstep.config.train import Rate
from fewstep.core.pairs import PairsConfig
from fewstep.core.times import TimeSampler
from fewstep.methods.point import GUIDANCE, GuidedConfig, NoisyConfig, Strengths

Positive = Annotated[float, Field(gt=0)]


class CriticConfig(NoisyConfig):
    """Keys of every objective with a critic."""

    steps: int = Field(
        1, ge=1, description="steps of the student's sampler, each trained on the states it meets in sampling"
    )
    critic_ratio: int = Field(5, ge=1, description="updates of the critic per update of the student")
    critic_lr: float = Field(1.0, gt=0, description="the critic's learning rate as a multiple of train.lr")
    guidance: Strengths = Field(None, description=GUIDANCE)
    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"),
        description="distribution of the time to which samples are noised",
    )


class AdversarialConfig(CriticConfig):
    """Keys of those with adversarial terms as well."""

    gan: float = Field(
        0.0,
        ge=0,
        description="weight of the student's adversarial term; 0: no head at all (published: 0.001 to 0.003)",
    )
    gan_critic: float = Field(
        0.01, gt=0, description="weight of the head's loss, relative to the critic's flow-matching loss"
    )
    head_lr: float = Field(1.0, gt=0, description="the head's learning rate as a multiple of train.lr")
    head_betas: tuple[Rate, Rate] | None = Field(None, description="the head's AdamW moment decays; none: train.betas")
    taps: tuple[int, ...] = Field(
        (-1,),
        min_length=1,
        description="indices of the critic's inner layers that the head reads; negative: counted from the last one",
    )


class DMD2Config(AdversarialConfig):
    """Distribution matching (DMD2)."""


class FDistillConfig(AdversarialConfig):
    """Distribution matching with another f-divergence."""

    divergence: Literal["forward-kl", "jensen-shannon", "softened-reverse-kl", "hellinger", "jeffreys"] = Field(
        "forward-kl", description="divergence between teacher and fakes; reverse KL is dmd2"
    )
    clip: tuple[Positive, Positive] = Field((0.1, 20.0), description="bounds of the density ratio p_data / p_fakes")
    gan: float = Field(
        0.001, ge=0, description="weight of the student's adversarial term; the head is trained for 0 too"
    )


class DriftingConfig(Strict):
    """Drifting."""

    temperatures: tuple[Positive, ...] = Field(
        (0.02, 0.05, 0.2),
        min_length=1,
        description="temperatures of the affinities, in units of the mean distance; their drifts are summed",
    )
    p_uncond: float = Field(
        0.0, ge=0, le=1, description="share of samples for which the student's condition is dropped"
    )


class SiDConfig(CriticConfig):
    """Score identity distillation."""

    alpha: float = Field(
        1.0, ge=0, description="alpha, the factor of the squared difference that is subtracted; published: 1.0 to 1.2"
    )


class VSDConfig(CriticConfig):
    """Variational score distillation."""

    critic_lr: float = Field(10.0, gt=0, description="the adapters' learning rate as a multiple of train.lr")
    rank: int = Field(8, ge=1, description="rank of the critic's adapters (LoRA) on the teacher's linear layers")


class LADDConfig(Strict):
    """Latent adversarial diffusion distillation."""

    steps: int = Field(1, ge=1, description="steps of the student's sampler; the student is trained at their times")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")
    p_uncond: float = Field(
        0.0, ge=0, le=1, description="share of samples for which the student's condition is dropped"
    )
    t: TimeSampler = Field(
        default_factory=TimeSampler,
        description="distribution of the time to which samples are noised for the discriminator",
    )
    taps: tuple[int, ...] = Field(
        (),
        description="indices of the teacher's inner layers with a head; negative: counted from the last one; none: all",
    )
    head_lr: float = Field(1.0, gt=0, description="the heads' learning rate as a multiple of train.lr")
    head_betas: tuple[Rate, Rate] | None = Field(None, description="the heads' AdamW moment decays; none: train.betas")
    head_ratio: int = Field(5, ge=1, description="updates of the heads per update of the student")
    real: Literal["data", "pairs"] = Field(
        "data", description="the discriminator's real samples: the data, or the teacher's samples (published)"
    )
    pairs: PairsConfig = Field(default_factory=PairsConfig, description="the teacher's samples (real = pairs)")


class TwinFlowConfig(GuidedConfig):
    """TwinFlow."""

    t: TimeSampler = Field(
        default_factory=lambda: TimeSampler(kind="uniform"), description="distribution of the training times"
    )
    interval: float = Field(0.01, gt=0, lt=1, description="D of the finite difference")
    near: float = Field(0.05, gt=0, le=1, description="longest interval t - s of the near part, as a share of t")
    clip: float = Field(1.0, gt=0, description="bound on each element of the residual and of the velocity difference")
    weight: float = Field(0.5, ge=0, description="weight of the velocity-difference term (gap)")
    power: float = Field(0.5, ge=0, description="p of the weight 1 / m^p, m the sample's mean squared error; 0: none")
