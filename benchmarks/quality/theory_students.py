"""Students that are linear in fixed features: the point where a method's gradient vanishes solves a linear system.

A trained network adds its optimisation error, which after minutes of training exceeds the biases in question. Here the
stationary point is solved for: E[phi r] = 0 over the method's own times and samples, with the residual
r = F + span dF/dt - v. There the (semi-)gradient that the engine follows is 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.quality.theory_exact import Velocity
from fewstep.core.backbone import Backbone
from fewstep.core.batch import Condition
from fewstep.core.interpolant import Interpolant
from fewstep.core.layout import Dense, Layout
from fewstep.core.mixture import Mixture

Method = Literal["vm", "vm-clamped", "cm", "jvp"]
WAVES, SAMPLES, RIDGE = 300, 6_000, 1e-6
LENGTH, SPEED = 2.0, 4.0  # of the waves: length scale in units of the data; radians per unit of time


class MixtureFlow(Backbone):
    """The exact velocity field of a mixture, for states [B, F]."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return self.mixture.velocity(Interpolant(), x, layout.expand(t_B, x), cond.tokens)


class LinearStudent(Backbone):
    """F(x, t) = phi(x, t) W in float64; phi holds random Fourier features of x and t, and 1, t, x and t x.

    Args:
        size: number of elements of a state.
        seed: seed of the random features.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.waves = torch.randn(size, WAVES, generator=draws, dtype=torch.float64) / LENGTH
        self.speeds = SPEED * torch.randn(WAVES, generator=draws, dtype=torch.float64)
        self.phases = 2 * torch.pi * torch.rand(WAVES, generator=draws, dtype=torch.float64)
        self.weight = nn.Parameter(torch.zeros(WAVES + 2 + 2 * size, size, dtype=torch.float64))

    def features(self, x: Tensor, t_B: Tensor) -> Tensor:
        """phi(x, t), [B, K]."""
        t = t_B[:, None]
        return torch.cat([(x @ self.waves + t * self.speeds + self.phases).cos(), torch.ones_like(t), t, x, t * x], 1)

    def forward(self, x: Tensor, t_B: Tensor, cond: Condition, layout: Layout, *, s_B: Tensor | None = None) -> Tensor:
        return self.features(x, t_B) @ self.weight

    def one_step(self, noise: Tensor) -> Tensor:
        """z - F(z, 1)."""
        ones = torch.ones(len(noise), dtype=noise.dtype)
        found: Tensor = (noise - self(noise, ones, Condition(), Dense(len(noise)))).detach()
        return found

    @torch.no_grad()
    def solve(self, method: Method, interval: float, mixture: Mixture, velocity: Velocity, seed: int) -> LinearStudent:
        """Set the weights to where the method's gradient is 0, over ``SAMPLES`` samples at uniform times.

        Args:
            method: "vm" and "cm" take a finite difference of ``interval`` at times above it, as the engine does;
                "vm-clamped" takes min(interval, t) at all t; "jvp" is velocity matching with the exact derivative.
        """
        draws = torch.Generator().manual_seed(seed)
        x0 = mixture.sample(mixture.draw_labels(SAMPLES, draws), draws)
        eps = torch.randn(x0.shape, generator=draws, dtype=x0.dtype)
        low = interval if method in ("vm", "cm") else 0.0
        t_B = low + (1 - low) * torch.rand(SAMPLES, generator=draws, dtype=x0.dtype)
        t = t_B[:, None]
        x_t = (1 - t) * x0 + t * eps
        v, phi = velocity(x_t, t_B), self.features(x_t, t_B)
        if method == "jvp":
            slope = torch.func.jvp(self.features, (x_t, t_B), (v, torch.ones_like(t_B)))[1]
        else:
            back = t.clamp(max=interval)
            slope = (phi - self.features(x_t - back * v, t_B - back[:, 0])) / back
        span = t - interval if method == "cm" else t
        eye = RIDGE * torch.eye(phi.shape[1], dtype=x0.dtype)
        start = torch.linalg.solve(phi.T @ phi / SAMPLES + eye, phi.T @ v / SAMPLES)
        system, wanted = phi.T @ (phi + span * slope) / SAMPLES, phi.T @ v / SAMPLES
        self.weight.copy_(start + torch.linalg.solve(system + eye, wanted - system @ start))
        return self
