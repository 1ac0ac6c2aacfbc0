"""Policies: a network that answers once, with velocities at several points of the path ahead (pi-Flow's DX policy).

From x at time t it predicts the data x0_k = x - t u_k at the times t k / (N - 1), and x0 is linear in between. The path
obeys dx/dr = (x - x0(r)) / r, which is linear in x, so no substeps are needed: its average velocity down to any s is a
weighted mean of the u_k. So a policy is a two-time student that answers for several target times in one pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.core.layout import Layout

POINTS = 10  # N, as published (arXiv 2510.14974)
NEAREST = (1e-12, 1 - 1e-6)  # bounds of s / t: at 0 and 1 a numerator and its denominator both vanish


def average(outputs: Tensor, t_B: Tensor, s_B: Tensor | None, layout: Layout) -> Tensor:
    """The average velocity from ``t_B`` [B] down to ``s_B``.

    Args:
        outputs: [N, ...] the velocities u_k, each like x, N > 1.
        s_B: [B], or [K, B] for K answers [K, ...]; None for the velocity at t itself, the last of the outputs.
    """
    if s_B is None:
        return outputs[-1]
    if s_B.dim() == 2:
        return torch.stack([average(outputs, t_B, one_B, layout) for one_B in s_B])
    weights = weights_of(s_B.double() / t_B.double(), len(outputs))
    return torch.stack([layout.expand(w_B, u) * u for w_B, u in zip(weights.unbind(1), outputs, strict=True)]).sum(0)


def weights_of(share_B: Tensor, points: int) -> Tensor:
    """[B, N] the weights of the velocities for s / t = ``share_B``, which add up to 1.

    x_s = (s / t) x_t + s * (the integral of x0(r) / r^2 from s to t), and x0 is a sum of hat functions.
    """
    share = share_B.clamp(*NEAREST)[:, None]
    places = torch.linspace(0, 1, points, dtype=share.dtype, device=share.device)
    low, high = torch.maximum(places[:-1], share), torch.maximum(places[1:], share)
    inverse, log = 1 / low - 1 / high, (high / low).log()  # integrals of 1 / r^2 and 1 / r over what lies above s
    weights = torch.zeros(len(share), points, dtype=share.dtype, device=share.device)
    weights[:, :-1] += places[1:] * inverse - log
    weights[:, 1:] += log - places[:-1] * inverse
    return (points - 1) * share / (1 - share) * weights


def repeated(layer: nn.Linear, points: int = POINTS) -> nn.Linear:
    """A layer that repeats the outputs of ``layer`` ``points`` times: a policy that keeps the velocity at t."""
    weight = layer.weight
    wide = nn.Linear(layer.in_features, points * layer.out_features, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(weight.repeat(points, 1))
        wide.bias.copy_(layer.bias.repeat(points))
    return wide
