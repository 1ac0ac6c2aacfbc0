"""Progressive distillation (Salimans and Ho, "Progressive Distillation for Fast Sampling", arXiv 2202.00512)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, NetSpec, Objective, Phase, Step
from fewstep.core.times import step_grid
from fewstep.errors import invalid
from fewstep_trajectory.config import ProgressiveConfig
from fewstep_trajectory.path import average_velocity, drawn_piece

if TYPE_CHECKING:
    from fewstep.config.train import TrainConfig


class Progressive(Objective[ProgressiveConfig]):
    """w || F(x_t, t) - (x_t - x_s) / (t - s) ||^2: one step from t to s matches two steps of the teacher.

    Algorithm 2 of the paper. Its DDIM steps are Euler steps here; its target for the data x = x_t - t F is x_t - t
    times the target for F. The first stage's teacher is the run's, with its guidance. After each stage, a frozen copy
    of the student ("earlier") becomes the teacher of the next, which halves the number of steps again.
    """

    Config = ProgressiveConfig

    def networks(self) -> dict[str, NetSpec]:
        return {"student": NetSpec(), "earlier": NetSpec(frozen=True)}

    def contract(self) -> Contract:
        return Contract(sampler="euler", steps=self.config.steps[-1:], rescale_t=self.config.rescale_t)

    def check(self, train: TrainConfig) -> None:
        earlier = self.config.iterations * (len(self.config.steps) - 1)
        if train.steps <= earlier:
            accepted = f"more than the {earlier} of the stages before the last, or fewer objective.iterations"
            raise invalid("train.steps", train.steps, accepted)

    def stage(self, step: int) -> int:
        """The stage, from 0, that an iteration belongs to."""
        return min(step // self.config.iterations, len(self.config.steps) - 1)

    def phase(self, step: int) -> Phase:
        begins = step > 0 and self.stage(step) > self.stage(step - 1)
        return Phase(copies=(("earlier", "student"),) if begins else ())

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        layout, stage = batch.layout, step.decide(self.stage)
        steps = self.config.steps[stage]
        grid = torch.tensor(step_grid(2 * steps, self.config.rescale_t), dtype=torch.float64, device=batch.x0.device)
        first = 2 * drawn_piece(layout, step, steps)
        times = [grid[first + i] for i in range(3)]
        x_t = step.interpolant.interpolate(batch.x0, step.randn_like(batch.x0, "noise"), times[0], layout)
        teacher = nets.teacher if stage == 0 else nets.earlier
        error = nets.student(x_t, times[0], batch.cond, layout) - average_velocity(
            teacher, x_t, times, batch.cond, layout
        )
        return {"progressive": self.config.distance(error, self.weight(times[0]), layout)}

    def weight(self, t_B: Tensor) -> Tensor:
        """[B] 1, or t^2 max((1 - t)^2 / t^2, 1): the truncated SNR weights the error of the data, t times that of F."""
        if self.config.weight == "velocity":
            return torch.ones_like(t_B)
        return torch.maximum(1 - t_B, t_B).square()
