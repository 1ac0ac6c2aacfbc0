"""Inductive moment matching (IMM, arXiv 2503.07565): jumps to s from two neighbouring times, compared as distributions.

Samples form groups of M, which share t, s and r, with s <= r < t. The noise-to-data ratio t / (1 - t) at r is that at t
less ``gap``. With y = x_t - (t - s) F(x_t, t, s), and z the same jump from x_r = x_t - (t - r) vT with stop-gradient,

    w(t) / M^2 sum over j, k of [k(y_j, y_k) + k(z_j, z_k) - 2 k(y_j, z_k)],    k(a, b) = exp(-|a - b| / (D (t - s)))

is the weighted squared maximum mean discrepancy (MMD) between a group's y and z under a Laplace kernel, for samples of
D elements. With M = 1 it is consistency distillation. With the log SNR L = 2 log((1 - t) / t) the weight is

    w(t) = 1/2 sigmoid(b - L) (-dL/dt) (1 - t)^a / (t^2 + (1 - t)^2).

Published: training on data (``velocity = "data"``, where x_r has the same data and noise as x_t), M 4, b 5, a 1 or 2,
t and s uniform, gap 160 / 2^12. A group is M consecutive samples of the batch; samples of different sizes are not
compared with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.layout import Layout
from fewstep.core.objective import Nets, Step, per
from fewstep.methods.distance import as_rows
from fewstep.methods.point import UNIFORM
from fewstep_flowmaps.config import IMMConfig
from fewstep_flowmaps.interval import CONTINUOUS, FlowMap

FARTHEST = 160.0  # largest noise-to-data ratio that r is computed from: at t = 1 it is infinite
SMALLEST = 1e-8  # lower bound of distances: the norm has no gradient at 0


class MomentMatching(FlowMap[IMMConfig]):
    """The weighted MMD between jumps from t and from r, group by group."""

    Config = IMMConfig

    def ends(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """[B] times t and s, one pair per group."""
        first = self.groups(batch.layout) * self.config.particles
        t_B = step.times(batch.layout, self.config.t, "t")[first]
        s_B = t_B * step.times(batch.layout, UNIFORM, "s")[first]
        low = step.interpolant.sigma_min
        return CONTINUOUS.times(t_B, low), CONTINUOUS.times(s_B, low)

    def groups(self, layout: Layout) -> Tensor:
        """[B] the index of each sample's group."""
        return torch.arange(layout.batch_size) // self.config.particles

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        at, layout = self.interval(batch, nets, step), batch.layout
        r_B = torch.maximum(at.s_B, self.before(at.t_B))
        x_r = at.x_t - layout.expand(at.t_B - r_B, at.x_t) * at.velocity
        y = at.x_t - at.span * at.student(at.x_t, at.t_B, at.s_B)
        with torch.no_grad():
            z = x_r - layout.expand(r_B - at.s_B, x_r) * at.target(x_r, r_B, at.s_B)
        (rows_y, sizes_B), (rows_z, _) = as_rows(y, layout), as_rows(z, layout)
        groups_B = self.groups(layout).to(y.device)
        together = (groups_B[:, None] == groups_B) & (sizes_B[:, None] == sizes_B)
        width_B = ((at.t_B - at.s_B) * sizes_B).clamp(min=SMALLEST)

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            """[B] the mean of k over the group of each sample."""
            distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=SMALLEST)
            return ((-distances / width_B[:, None]).exp() * together).sum(1) / together.sum(1)

        discrepancy_B = kernel(rows_y, rows_y) + kernel(rows_z, rows_z) - 2 * kernel(rows_y, rows_z)
        value = layout.expand(self.weight(at.t_B) * discrepancy_B, y).expand_as(y)
        return {"imm": per(self.config.reduction, value, layout)}

    def before(self, t_B: Tensor) -> Tensor:
        """[B] the time whose noise-to-data ratio is smaller by ``gap``, at least 0."""
        ratio_B = ((t_B / (1 - t_B)).clamp(max=FARTHEST) - self.config.gap).clamp(min=0)
        return ratio_B / (1 + ratio_B)

    def weight(self, t_B: Tensor) -> Tensor:
        """[B] w(t), simplified so that nothing divides by t or 1 - t."""
        data_B = 1 - t_B
        noise = t_B.square() + torch.exp(torch.tensor(-self.config.bias)) * data_B.square()
        return data_B ** (self.config.power - 1) * t_B / noise / (t_B.square() + data_B.square())
