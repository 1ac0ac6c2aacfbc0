"""Velocity matching, F + t dF/dt = vT along the teacher's path, under a pseudo-Huber loss, robust to outliers."""

import torch
from pydantic import Field

from fewstep.core import Objective, Strict, TimeSampler


class HuberConfig(Strict):
    c: float = Field(0.1, gt=0, description="errors below c count as squares, those above it linearly")
    t: TimeSampler = Field(TimeSampler(), description="distribution of the training time")


class Huber(Objective[HuberConfig]):
    Config = HuberConfig
    needs = frozenset({"jvp"})

    def loss(self, batch, nets, step):
        t_B = step.times(batch.layout, self.config.t)
        x_t = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise"), t_B, batch.layout)
        v = nets.teacher(x_t, t_B, batch.cond, batch.layout).detach()
        student = lambda x, t_B: nets.student(x, t_B, batch.cond, batch.layout)  # noqa: E731
        average, slope = step.jvp(student, (x_t, t_B), (v, torch.ones_like(t_B)), batch.layout)
        residual = average + batch.layout.expand(t_B, x_t) * slope - v
        size_B = batch.layout.mean(residual.square())
        return {"huber": (size_B + self.config.c**2).sqrt() - self.config.c}
