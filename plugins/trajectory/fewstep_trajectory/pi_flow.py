"""pi-Flow: policy-based few-step generation by imitation distillation (Chen et al., arXiv 2510.14974)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step
from fewstep.methods.point import UNIFORM
from fewstep_trajectory.config import PiFlowConfig
from fewstep_trajectory.path import drawn_piece


class PiFlow(Objective[PiFlowConfig]):
    """|| mean velocity of the policy over [b, a] - vT(x_a, a) ||^2 at states x_a on the policy's own path.

    From a noisy sample at the start of a sampling step, one forward pass of the student gives a policy
    (``fewstep.core.policy``) for the whole step. The policy is followed to ``states`` random times a, where the guided
    teacher is evaluated, and its mean velocity is taken over a short window from there, b = a - ``window``. x_a is
    detached: no gradient runs through the path to it (on-policy imitation, the paper's algorithm 1). The policy is
    integrated exactly, where the paper takes 128 substeps; the paper's mixing of teacher steps into the early part of
    training is left out.
    """

    Config = PiFlowConfig
    needs: ClassVar[frozenset[str]] = frozenset({"policy", "two_time"})
    sampler = "jump"

    def contract(self) -> Contract:
        return Contract(
            sampler=self.sampler, steps=(self.config.steps,), rescale_t=self.config.rescale_t, two_time=True
        )

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, config, count = batch.layout, self.config, self.config.states
        grid = torch.tensor(self.contract().grid(config.steps), dtype=torch.float64, device=batch.x0.device)
        piece = drawn_piece(layout, step, config.steps)
        t_B, end_B = grid[piece], grid[piece + 1]
        x_t = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise"), t_B, layout)
        window_B = (t_B - end_B).clamp(max=config.window)
        drawn = torch.stack([step.times(layout, UNIFORM, f"state/{i}").double() for i in range(count)])
        a_B = end_B + window_B + drawn * (t_B - end_B - window_B)
        targets_B = torch.cat([a_B, a_B - window_B])
        averages: Tensor = nets.student(x_t, t_B, batch.cond, layout, s_B=targets_B).to(x_t.dtype)

        def state(i: int, at_B: Tensor) -> Tensor:
            return x_t - layout.expand(t_B - at_B, x_t) * averages[i]

        terms = []
        for i in range(count):
            x_a, x_b, b_B = state(i, a_B[i]), state(count + i, a_B[i] - window_B), a_B[i] - window_B
            here = x_a.detach()
            # The policy's path from ``here``: its end is linear in its start.
            x_b = x_b + layout.expand(b_B / a_B[i], x_t) * (here - x_a)
            with torch.no_grad():
                target = nets.teacher(here, a_B[i], batch.cond, layout)
            error = (here - x_b) / layout.expand(window_B, x_t) - target
            terms.append(config.distance(error, torch.ones_like(t_B), layout))
        return {"pi": torch.stack(terms).mean(0)}
