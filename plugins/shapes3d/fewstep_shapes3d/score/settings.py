"""The settings of a score, which are stored with its results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewstep.config.base import Strict
from fewstep_shapes3d.data.meshfiles import UpChoice
from fewstep_shapes3d.score.pairing import Missing

Alignment = Literal["unaligned", "rigid", "similarity"]


class Settings(Strict):
    """How objects are scored."""

    align: tuple[Alignment, ...] = Field(("unaligned", "rigid", "similarity"), min_length=1, description="alignments")
    points: int = Field(10_000, ge=500, le=1_000_000, description="points drawn on each surface")
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.01, 0.02, 0.05), min_length=1, description="distances of the F-score, in sides of the cube"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the points")
    resamples: int = Field(1000, ge=100, description="resamples of the objects, for intervals")
    up: UpChoice = Field("auto", description="axis that points up in generated meshes; auto: by format")
    true_up: UpChoice = Field("auto", description="axis that points up in true meshes")
    frame: Literal["own", "true"] = Field(
        "own", description="box that is scaled to the cube: each object's own, or the true object's for both"
    )
    missing: Missing = Field("count", description="true objects that no folder has: counted as failed, or left out")
    views: bool = Field(True, description="render views and compare their features")
