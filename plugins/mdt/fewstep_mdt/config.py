"""Configs of the MDT objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.methods.point import PointConfig, Strengths


class VMConfig(PointConfig):
    """Velocity matching. The defaults suit a small model; ``--preset paper`` has the published values."""

    kind: Literal["discrete", "continuous", "cm"] = Field(
        "discrete",
        description="dF/dt by a finite difference, by jvp, or the published trainer's consistency loss on states",
    )
    interval: float = Field(0.02, gt=0, lt=1, description="D of the finite difference (discrete and cm)")
    d_norm: Literal["none", "sample", "element"] = Field(
        "element", description="size taken from dF/dt: none, norm over the sample (published), root mean square; not cm"
    )
    d_norm_constant: float = Field(0.1, gt=0, description="c in dv / (size + c)")
    guidance_vm: Strengths = Field(
        None, description="VM: teacher's w in (1 + w) c - w u, of a list one value a step; none: the teacher's own"
    )
    lambda_vm: float = Field(1.0, ge=0, description="weight of VM; 0 leaves it out")
    multiphase: int = Field(1, ge=1, description="phases; the student jumps to the end of its phase")
    sampler: Literal["euler", "consistency"] = Field("euler", description="how the student is to be sampled")

    @model_validator(mode="after")
    def _something_to_do(self) -> VMConfig:
        if self.lambda_vm == 0 and getattr(self, "lambda_vd", 0.0) == 0:
            raise ValueError("every weight (lambda) is 0: nothing is left to minimise")
        if self.multiphase > 1 and self.sampler == "consistency":
            raise ValueError("sampler 'consistency' jumps to the data; with multiphase > 1 use 'euler'")
        return self


class MDTConfig(VMConfig):
    """Velocity matching and velocity distillation."""

    guidance_vd: Strengths = Field(
        None, description="VD: teacher's w in (1 + w) c - w u, of a list one value a step; none: the teacher's own"
    )
    lambda_vd: float = Field(0.5, ge=0, description="weight of VD; 0 leaves it out")
    vd_after: int = Field(
        0,
        ge=0,
        description="iterations of VM alone first: VD reads the student's own velocity, which VM has to make; without "
        "VM (lambda_vm=0) VD starts at once",
    )
    vd_factor: bool = Field(
        False, description="weigh VD's gradient by (1 - t), as in the paper's equation 17; the published code does not"
    )

    @property
    def vd_start(self) -> int:
        """The first iteration with VD."""
        return self.vd_after if self.lambda_vm > 0 else 0
