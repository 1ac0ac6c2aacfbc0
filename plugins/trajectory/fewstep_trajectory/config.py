"""Configs of the trajectory methods."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator
from torch import Tensor

from fewstep.config.base import Strict
from fewstep.core.layout import Layout
from fewstep.core.pairs import PairsConfig
from fewstep.core.times import TimeSampler
from fewstep.methods.distance import distance

UNIFORM = TimeSampler(kind="uniform")


class DistanceConfig(Strict):
    """The keys of a distance between the student's answer and what it should be."""

    loss: Literal["l2", "pseudo-huber"] = Field("l2", description="distance of the answer from its target")
    huber: float = Field(0.03, gt=0, description="c of the pseudo-Huber distance, in units of an element")
    reduction: Literal["element", "sample"] = Field(
        "sample", description="loss as mean over samples, or over all elements (a longer sample weighs more)"
    )

    def distance(self, error: Tensor, weight_B: Tensor, layout: Layout) -> Tensor:
        """The distance as a loss term; see ``fewstep.methods.distance``."""
        return distance(error, weight_B, layout, self.huber if self.loss == "pseudo-huber" else None, self.reduction)


class KDConfig(DistanceConfig):
    """Knowledge distillation from stored pairs."""

    pairs: PairsConfig = Field(default_factory=PairsConfig, description="the teacher's pairs")


class ReflowConfig(DistanceConfig):
    """Flow matching on stored pairs."""

    pairs: PairsConfig = Field(default_factory=PairsConfig, description="the teacher's pairs")
    t: TimeSampler = Field(default=UNIFORM, description="distribution of the training time")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")


class ProgressiveConfig(DistanceConfig):
    """Progressive distillation, several stages in one run."""

    steps: tuple[int, ...] = Field(
        (8, 4, 2, 1), min_length=1, description="sampling steps of each stage's student, every one half of the last"
    )
    iterations: int = Field(250, ge=1, description="iterations of a stage; the last one goes on to the end of the run")
    weight: Literal["velocity", "truncated-snr"] = Field(
        "velocity", description="factor of the distance of velocities: 1, or what the paper's truncated SNR comes to"
    )
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grid of teacher and student")

    @field_validator("steps")
    @classmethod
    def _halving(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if steps[-1] < 1 or any(a != 2 * b for a, b in pairwise(steps)):
            raise ValueError("from 1 on, each half of the one before, as in 8, 4, 2, 1")
        return steps


class PiFlowConfig(DistanceConfig):
    """Policies that imitate the teacher."""

    steps: int = Field(1, ge=1, description="steps of the student's sampler; a policy is trained for each")
    states: int = Field(2, ge=1, description="states of a policy's path at which the teacher is asked")
    window: float = Field(
        3 / 128, gt=0, le=1, description="length of time over which the policy is compared with the teacher's velocity"
    )
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")


class PeRFlowConfig(DistanceConfig):
    """Piecewise rectified flow."""

    windows: int = Field(4, ge=1, description="windows of time, and the fewest sampling steps")
    solver_steps: int = Field(4, ge=1, description="Euler steps of the teacher within a window")
    rescale_t: float = Field(1.0, gt=0, description="warp of the windows' ends, and of the student's time grid")
