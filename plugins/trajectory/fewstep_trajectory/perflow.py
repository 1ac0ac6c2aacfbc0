"""PeRFlow: piecewise rectified flow (Yan et al., arXiv 2405.07510)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step
from fewstep.core.times import step_grid
from fewstep.methods.point import UNIFORM
from fewstep_trajectory.config import PeRFlowConfig
from fewstep_trajectory.path import average_velocity, drawn_piece


class PeRFlow(Objective[PeRFlowConfig]):
    """|| F(x_t, t) - (x_a - x_b) / (a - b) ||^2 with x_t on the line from x_a to x_b, the ends of a time window.

    x_a is a noisy sample at the window's start a; x_b is where the teacher's ODE, solved on the fly, leads from x_a at
    the window's end b < a. Paths become straight within each window: reflow without stored pairs, on real data, for as
    many steps as there are windows.
    """

    Config = PeRFlowConfig

    def contract(self) -> Contract:
        windows = self.config.windows
        return Contract(sampler="euler", steps=(windows, 2 * windows), rescale_t=self.config.rescale_t)

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, config = batch.layout, self.config
        bounds = torch.tensor(step_grid(config.windows, config.rescale_t), dtype=torch.float64, device=batch.x0.device)
        window = drawn_piece(layout, step, config.windows)
        a_B, b_B = bounds[window], bounds[window + 1]
        x_a = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise"), a_B, layout)
        times = [a_B + (b_B - a_B) * (i / config.solver_steps) for i in range(config.solver_steps + 1)]
        target = average_velocity(nets.teacher, x_a, times, batch.cond, layout)
        t_B = a_B + (b_B - a_B) * step.times(layout, UNIFORM).double()
        x_t = x_a - layout.expand(a_B - t_B, x_a) * target
        error = nets.student(x_t, t_B, batch.cond, layout) - target
        return {"perflow": config.distance(error, torch.ones_like(t_B), layout)}
