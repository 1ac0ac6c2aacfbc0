"""Drifting (arXiv 2602.04770, lambertae/drifting): samples are drawn to data and pushed from each other, no teacher.

The samples x of a batch are made in one step, and compared with each other and with the batch's data by the distance
of their elements, over the mean distance. At a temperature T the affinity a_ij of x_i to a sample, or to data y_j, is
the geometric mean of the two softmaxes of -distance / T, over j and over i. With the sums n_i of its affinities to
samples (itself left out) and p_i to data, x_i drifts by

    sum over data of n_i a_ij (y_j - x_i)  -  sum over samples of p_i a_ij (x_j - x_i),

scaled to a root mean square of 1, and the drifts of all temperatures add up. The loss is || x - sg(x + drift) ||^2.
Where samples and data are equally distributed the two sums cancel on average. Only samples of equal conditions and
sizes are compared. Published: features of an encoder in place of x, temperatures 0.02, 0.05, 0.2, and 64 samples of a
class.
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

APART = 100.0  # added to the relative distance of what is not compared
LEAST = 1e-6  # of the product of both softmaxes


class Drifting(Objective[DriftingConfig]):
    """One-step samples follow the drift that data and the other samples of the batch exert on them."""

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
        return {"drifting": error.square().sum(1) / sizes_B}


def drifts(
    own: Tensor, data: Tensor, sizes_B: Tensor, alike: Tensor, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """The unit of length, and the drift [B, D] of samples in it.

    Args:
        own, data: [B, D] samples, and as many true ones.
        sizes_B: [B] the number of their elements.
        alike: [B, B] which may be compared; own sample i is to data j as to own sample j.
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
