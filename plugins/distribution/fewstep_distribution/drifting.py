"""Drifting (arXiv 2602.04770; code at lambertae/drifting): data attract samples, samples repel each other; no teacher.

The samples x of a batch are made in one step. Distances between them, and to the batch's data y, are Euclidean, in
units of their mean. At a temperature T the affinity a_ij of x_i to another sample x_j, or to data y_j, is the geometric
mean of two softmaxes of -distance / T, over j and over i. With n_i the sum of x_i's affinities to the other samples and
p_i that to data, x_i drifts by

    sum over data of n_i a_ij (y_j - x_i)  -  sum over samples of p_i a_ij (x_j - x_i),

scaled to a root mean square of 1 over the batch; the drifts of all temperatures are summed. The loss is
|| x - sg(x + drift) ||^2. Where samples and data have the same distribution, the two sums cancel on average. Only
samples of equal condition and size are compared. Published: features of an encoder in place of x, temperatures 0.02,
0.05, 0.2, and 64 samples per class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.batch import Batch
from fewstep.core.contract import Contract
from fewstep.core.objective import Nets, Objective, Step
from fewstep.methods.distance import as_rows
from fewstep.methods.fakes import generate
from fewstep.methods.point import dropped
from fewstep_distribution.config import DriftingConfig

APART = 100.0  # added to the relative distance of pairs that are not compared
LEAST = 1e-6  # lower bound of the product of the two softmaxes


class Drifting(Objective[DriftingConfig]):
    """One-step samples regress on themselves plus their drift; see the module."""

    Config = DriftingConfig

    def contract(self) -> Contract:
        return Contract(sampler="euler", steps=(1,))

    def loss(self, batch: Batch, nets: Nets, step: Step) -> dict[str, Tensor]:
        cond, layout = dropped(batch, step, self.config.p_uncond, "drop/fake"), batch.layout
        rows, sizes_B = as_rows(generate(batch, cond, nets, step)[0], layout)
        with torch.no_grad():
            alike = sizes_B[:, None] == sizes_B
            if batch.cond.tokens is not None:
                _, kinds_B = batch.cond.tokens.unique(dim=0, return_inverse=True)
                alike &= kinds_B[:, None] == kinds_B
            scale, drift = drifts(rows, as_rows(batch.x0, layout)[0], sizes_B, alike, self.config.temperatures)
        error = (rows - rows.detach()) / scale - drift
        return {"drifting": error.square().sum(1) / sizes_B.clamp(min=1)}


def drifts(
    own: Tensor, data: Tensor, sizes_B: Tensor, alike: Tensor, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """The unit of length (a scalar), and the drift [B, D] of the samples in that unit.

    Args:
        own, data: [B, D] the student's samples, and as many from the data.
        sizes_B: [B] the number of elements of each.
        alike: [B, B] bool, whether sample i may be compared with sample j and with data j.
    """
    count, both = len(own), torch.cat([own, data])
    allowed = torch.cat([alike, alike], 1)
    distance = torch.cdist(own, both, compute_mode="donot_use_mm_for_euclid_dist")
    mean = ((distance * allowed).sum() / allowed.sum()).clamp(min=1e-3)
    scale = mean / sizes_B.to(own.dtype).mean().sqrt()
    itself = torch.cat([torch.eye(count, device=own.device), torch.zeros(count, count, device=own.device)], 1)
    relative = distance / mean + APART * (itself + ~allowed)
    total = torch.zeros_like(own)
    for temperature in temperatures:
        logits = -relative / temperature
        affinity = (logits.softmax(1) * logits.softmax(0)).clamp(min=LEAST).sqrt() * allowed
        to_own, to_data = affinity[:, :count], affinity[:, count:]
        pull = torch.cat([-to_own * to_data.sum(1, True), to_data * to_own.sum(1, True)], 1)
        force = (pull @ both - pull.sum(1, True) * own) / scale
        total += force / (force.square().sum() / sizes_B.sum()).clamp(min=1e-8).sqrt()
    return scale, total
