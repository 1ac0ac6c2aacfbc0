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
from fewstep.methods.point import UNIFORM


class DistanceConfig(Strict):
    """Keys of the distance between a prediction and its target."""

    loss: Literal["l2", "pseudo-huber"] = Field("l2", description="distance between prediction and target")
    huber: float = Field(0.03, gt=0, description="c of the pseudo-Huber distance, on the scale of one element")
    reduction: Literal["element", "sample"] = Field(
        "sample", description="loss averaged over samples, or over all elements (longer samples count more)"
    )

    def distance(self, error: Tensor, weight_B: Tensor, layout: Layout) -> Tensor:
        """The distance as a loss term; see ``fewstep.methods.distance``."""
        return distance(error, weight_B, layout, self.huber if self.loss == "pseudo-huber" else None, self.reduction)


class KDConfig(DistanceConfig):
    """Knowledge distillation from stored pairs."""

    pairs: PairsConfig = Field(default_factory=PairsConfig, description="the stored pairs of the teacher")


class ReflowConfig(DistanceConfig):
    """Reflow: flow matching on stored pairs."""

    pairs: PairsConfig = Field(default_factory=PairsConfig, description="the stored pairs of the teacher")
    t: TimeSampler = Field(default=UNIFORM, description="distribution of the training time")
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")


class ProgressiveConfig(DistanceConfig):
    """Progressive distillation, with several stages in one run."""

    steps: tuple[int, ...] = Field(
        (8, 4, 2, 1), min_length=1, description="sampling steps of each stage's student, each half of the one before"
    )
    iterations: int = Field(
        250, ge=1, description="iterations per stage; the last stage lasts until the end of the run"
    )
    weight: Literal["velocity", "truncated-snr"] = Field(
        "velocity", description="factor of the distance between velocities: 1, or the paper's truncated-SNR weight"
    )
    rescale_t: float = Field(1.0, gt=0, description="warp of the time grids of teacher and student")

    @field_validator("steps")
    @classmethod
    def _halving(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if steps[-1] < 1 or any(a != 2 * b for a, b in pairwise(steps)):
            raise ValueError("from 1 on, each half of the one before, as in 8, 4, 2, 1")
        return steps


class PiFlowConfig(DistanceConfig):
    """pi-Flow: policies that imitate the teacher."""

    steps: int = Field(1, ge=1, description="steps of the student's sampler, each with a policy of its own")
    states: int = Field(2, ge=1, description="states on a policy's path at which the teacher is evaluated")
    window: float = Field(
        3 / 128, gt=0, le=1, description="length of time over which the policy's velocity is averaged"
    )
    rescale_t: float = Field(1.0, gt=0, description="warp of the student's time grid")


class PeRFlowConfig(DistanceConfig):
    """Piecewise rectified flow."""

    windows: int = Field(4, ge=1, description="number of time windows, and the smallest number of sampling steps")
    solver_steps: int = Field(4, ge=1, description="Euler steps of the teacher within a window")
    rescale_t: float = Field(1.0, gt=0, description="warp of the windows' ends, and of the student's time grid")
