"""Configs of the MDT objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fewstep.core.times import TimeSampler
from fewstep.methods.point import GUIDANCE, PointConfig, Strengths
from fewstep.methods.targets import TargetConfig


class VMConfig(PointConfig, TargetConfig):
    """Velocity matching (VM). The defaults suit a small model; ``--preset paper`` has the published values."""

    kind: Literal["discrete", "continuous", "cm"] = Field(
        "discrete",
        description="dF/dt by a finite difference or by jvp, or the published trainer's consistency loss on states",
    )
    interval: float = Field(0.02, gt=0, lt=1, description="D of the finite difference (discrete and cm)")
    difference: Literal["published", "euler"] = Field(
        "published",
        description="factor of the finite difference (discrete only): t, or t - D, which matches the student's jumps "
        "before and after an Euler step of the teacher, as consistency distillation does",
    )
    loss: Literal["l2", "pseudo-huber"] = Field("l2", description="VM: distance between prediction and target")
    huber: float = Field(0.3, gt=0, description="VM: c of the pseudo-Huber distance, on the scale of one element")
    d_norm: Literal["none", "sample", "element"] = Field(
        "element",
        description="normalisation of dF/dt: none, by its norm over the sample (published), or by its RMS; not for cm",
    )
    d_norm_constant: float = Field(0.1, gt=0, description="c of the normalisation, dF/dt / (size + c)")
    guidance_vm: Strengths = Field(None, description=f"VM: {GUIDANCE}")
    lambda_vm: float = Field(1.0, ge=0, description="weight of VM; 0: off")
    multiphase: int = Field(1, ge=1, description="number of phases; the student jumps to the end of the current one")
    sampler: Literal["euler", "consistency"] = Field("euler", description="sampler that the student is stored with")

    @model_validator(mode="after")
    def _something_to_do(self) -> VMConfig:
        if self.lambda_vm == 0 and getattr(self, "lambda_vd", 0.0) == 0:
            raise ValueError("every weight (lambda) is 0: nothing is left to minimise")
        if self.target == "ema" and self.kind == "continuous":
            raise ValueError("kind 'continuous' has no second network: target must be 'student'")
        if self.multiphase > 1 and self.sampler == "consistency":
            raise ValueError("sampler 'consistency' jumps to the data; with multiphase > 1 use 'euler'")
        for key in ("guidance_vm", "guidance_vd"):
            if self.velocity == "data" and getattr(self, key, None) is not None:
                raise ValueError(f"velocity 'data' has no teacher that could be guided: {key} must be none")
        return self


class MDTConfig(VMConfig):
    """Velocity matching (VM) and velocity distillation (VD)."""

    guidance_vd: Strengths = Field(None, description=f"VD: {GUIDANCE}")
    lambda_vd: float = Field(0.5, ge=0, description="weight of VD; 0: off")
    vd_after: float = Field(
        0,
        ge=0,
        description="when VD starts: below 1 a share of the run, from 1 on a number of iterations; without VM "
        "(lambda_vm=0) it starts at once",
    )
    vd_factor: bool = Field(
        False, description="weight VD's gradient by 1 - t, as in the paper's equation 17; the published code does not"
    )
    vd_norm: Literal["none", "dmd"] = Field(
        "none",
        description="normalisation of VD's gradient: none, or by each sample's mean |teacher's v - (eps - x)| (DMD2)",
    )
    t_vd: TimeSampler | None = Field(
        None, description="distribution of VD's times, drawn with separate noise; none: VM's draws, as published"
    )
    score: Literal["self", "critic", "twin"] = Field(
        "self",
        description="velocity that stands for the score of the student's samples in VD: the student's (published), "
        "that of a critic trained on them (DMD2), or the student's at negative times, trained on them (TwinFlow)",
    )
    critic_ratio: int = Field(1, ge=1, description="critic: its updates per update of the student, once VD has started")
    critic_lr: float = Field(1.0, gt=0, description="critic: its learning rate as a multiple of train.lr")
    lambda_twin: float = Field(
        1.0, gt=0, description="twin: weight of the flow-matching loss at negative times, from the first iteration on"
    )

    @model_validator(mode="after")
    def _samples_have_a_score(self) -> MDTConfig:
        if self.score != "self" and (self.velocity != "teacher" or self.multiphase > 1):
            raise ValueError(f"score {self.score!r} needs velocity 'teacher' and multiphase 1")
        if self.vd_norm == "dmd" and self.kind == "cm" and self.score == "self":
            raise ValueError("kind 'cm' compares states: vd_norm must be 'none'")
        return self
