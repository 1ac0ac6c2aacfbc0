"""Configs of the toy backbone and its points. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fewstep.config.base import Strict

Target = Literal["ring", "checkerboard", "moons", "gaussian"]


class ToyConfig(Strict):
    """A 2-D target, its teacher and the size of the student."""

    target: Target = Field(
        "ring", description="density: 8 Gaussians on a ring, a checkerboard, two moons, one Gaussian"
    )
    conditional: bool = Field(
        False, description="condition on the class (ring: which Gaussian; checkerboard: which square)"
    )
    teacher: Literal["analytic", "learned"] | Path = Field(
        "analytic",
        description="the exact velocity of the mixture, an MLP fitted to it, or a run of `fewstep teach`",
    )
    guidance: float = Field(1.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none")
    sigma_min: float = Field(0.0, ge=0, lt=1, description="noise left at t = 0")
    width: int = Field(128, ge=1, description="hidden units of the student")
    depth: int = Field(3, ge=1, description="hidden layers of the student")
    points: int = Field(
        1, ge=1, description="velocities per forward pass, the points of a policy; set by method pi-flow"
    )
    pretrain: int = Field(1000, ge=0, description="iterations that fit the student to the exact velocity beforehand")
    seed: int = Field(0, description="seed of the student's initial weights and of that fit")


class PointsConfig(Strict):
    """Number and layout of the samples."""

    size: int = Field(20000, ge=1, description="training samples")
    held_out: int = Field(2000, ge=1, description="held-out samples, for the evaluation")
    layout: Literal["dense", "packed"] = Field("dense", description="one point per sample, or ragged sets of points")
    points: tuple[int, int] = Field((1, 8), description="smallest and largest number of points of a ragged sample")
    seed: int = Field(0, description="seed of the samples")

    @model_validator(mode="after")
    def _ordered(self) -> PointsConfig:
        low, high = self.points
        if not 0 < low <= high:
            raise ValueError(f"points: at least 1 and in order, got {low} to {high}")
        return self
