"""Distances of two states or velocities, by sample, and samples as rows for distances between them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.core.layout import Layout, Packed
from fewstep.core.objective import Reduction, per


def distance(difference: Tensor, weight_B: Tensor, layout: Layout, huber: float | None, reduction: Reduction) -> Tensor:
    """The weighted distance as a loss term: a value an element or a value a sample.

    Args:
        difference: [B, ...] or packed.
        weight_B: [B] factor of the squared distance.
        huber: None for the mean square m; else c of sqrt(m + c^2) - c (iCT, arXiv 2310.14189, equation 7, there with
            the sum of squares and its c = 0.00054 sqrt(elements)), which is m / 2c near 0 and grows as the root.
        reduction: as in ``fewstep.core.objective.per``.
    """
    if huber is None:
        return per(reduction, layout.expand(weight_B, difference) * difference.square(), layout)
    root_B = (layout.mean(difference.square()) + huber**2).sqrt() - huber
    return per(reduction, layout.expand(weight_B * root_B, difference).expand_as(difference), layout)


def as_rows(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Each sample as a row, [B, D], shorter ones filled up with zeros, and the number [B] of its elements."""
    if not isinstance(layout, Packed):
        return x.flatten(1), torch.full((len(x),), x[0].numel(), device=x.device)
    samples = x.split(layout.lengths_list)
    sizes_B = torch.tensor([one.numel() for one in samples], device=x.device)
    return pad_sequence(list(samples), batch_first=True).flatten(1), sizes_B
