"""Configs of the MDT objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.core.times import TimeSampler
from fewstep.methods.point import PointConfig, Strengths
from fewstep.methods.targets import TargetConfig

GUIDANCE = "teacher's w in (1 + w) c - w u, of a list one value a step, {start, end} over the run; none: its own"


class VMConfig(PointConfig, TargetConfig):
    """Velocity matching. The defaults suit a small model; ``--preset paper`` has the published values."""

    kind: Literal["discrete", "continuous", "cm"] = Field(
        "discrete",
        description="dF/dt by a finite difference, by jvp, or the published trainer's consistency loss on states",
    )
    interval: float = Field(0.02, gt=0, lt=1, description="D of the finite difference (discrete and cm)")
    difference: Literal["published", "euler"] = Field(
        "published",
        description="factor of a finite difference (discrete only): t, or t - D, with which F is matched with an Euler "
        "step of the teacher, as in consistency distillation, and nothing is read that is not trained",
    )
    loss: Literal["l2", "pseudo-huber"] = Field("l2", description="VM: distance of prediction and target")
    huber: float = Field(0.3, gt=0, description="VM: c of the pseudo-Huber distance, in units of an element")
    d_norm: Literal["none", "sample", "element"] = Field(
        "element", description="size taken from dF/dt: none, norm over the sample (published), root mean square; not cm"
    )
    d_norm_constant: float = Field(0.1, gt=0, description="c in dv / (size + c)")
    guidance_vm: Strengths = Field(None, description=f"VM: {GUIDANCE}")
    lambda_vm: float = Field(1.0, ge=0, description="weight of VM; 0 leaves it out")
    multiphase: int = Field(1, ge=1, description="phases; the student jumps to the end of its phase")
    sampler: Literal["euler", "consistency"] = Field("euler", description="how the student is to be sampled")

    @model_validator(mode="after")
    def _something_to_do(self) -> VMConfig:
        if self.lambda_vm == 0 and getattr(self, "lambda_vd", 0.0) == 0:
            raise ValueError("every weight (lambda) is 0: nothing is left to minimise")
        if self.target == "ema" and self.kind == "continuous":
            raise ValueError("kind 'continuous' has no second network: target must be 'student'")
        if self.multiphase > 1 and self.sampler == "consistency":
            raise ValueError("sampler 'consistency' jumps to the data; with multiphase > 1 use 'euler'")
        return self


class MDTConfig(VMConfig):
    """Velocity matching and velocity distillation."""

    guidance_vd: Strengths = Field(None, description=f"VD: {GUIDANCE}")
    lambda_vd: float = Field(0.5, ge=0, description="weight of VD; 0 leaves it out")
    vd_after: float = Field(
        0,
        ge=0,
        description="VM alone first: below 1 this share of the run, from 1 on so many iterations; without VM "
        "(lambda_vm=0) VD starts at once",
    )
    vd_factor: bool = Field(
        False, description="weigh VD's gradient by (1 - t), as in the paper's equation 17; the published code does not"
    )
    vd_norm: Literal["none", "dmd"] = Field(
        "none", description="size taken from VD's gradient: none, or by sample mean |teacher's v - (eps - x)| (DMD2)"
    )
    t_vd: TimeSampler | None = Field(
        None, description="distribution of VD's own time, with noise of its own; none: VM's draws, as published"
    )
    score: Literal["self", "critic", "twin"] = Field(
        "self",
        description="velocity of the student's own samples in VD: the student's (published), a critic's that is "
        "trained on them (DMD2), or the student's at negative time, trained on them (TwinFlow)",
    )
    critic_ratio: int = Field(1, ge=1, description="critic: its updates for each of the student, once VD has started")
    critic_lr: float = Field(1.0, gt=0, description="critic: factor on train.lr")
    lambda_twin: float = Field(1.0, gt=0, description="twin: weight of its flow matching, from the first iteration on")

    @model_validator(mode="after")
    def _samples_have_a_score(self) -> MDTConfig:
        if self.score != "self" and (self.velocity != "teacher" or self.multiphase > 1):
            raise ValueError(f"score {self.score!r} needs velocity 'teacher' and multiphase 1")
        if self.vd_norm == "dmd" and self.kind == "cm" and self.score == "self":
            raise ValueError("kind 'cm' compares states: vd_norm must be 'none'")
        return self
