"""The distance between two states or velocities as a loss term, and samples as rows for distances between samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.core.layout import Layout, Packed
from fewstep.core.objective import Reduction, per


def distance(difference: Tensor, weight_B: Tensor, layout: Layout, huber: float | None, reduction: Reduction) -> Tensor:
    """The weighted distance as an unreduced loss term: one value per element or per sample.

    Args:
        difference: [B, ...] or [T, C].
        weight_B: [B] factor of the distance.
        huber: None for the squared difference; else c of the pseudo-Huber distance sqrt(m + c^2) - c, where m is the
            mean square of a sample. It is m / 2c near 0 and grows as sqrt(m). iCT (arXiv 2310.14189, equation 7) has
            the sum of squares instead of m, and c = 0.00054 sqrt(elements).
        reduction: as in ``fewstep.core.objective.per``.

    Returns:
        [B, ...] or [T, C] for "element"; [B] for "sample".
    """
    if huber is None:
        return per(reduction, layout.expand(weight_B, difference) * difference.square(), layout)
    root_B = (layout.mean(difference.square()) + huber**2).sqrt() - huber
    return per(reduction, layout.expand(weight_B * root_B, difference).expand_as(difference), layout)


def as_rows(x: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Each sample as a row [B, D], shorter ones padded with zeros, and the number of elements of each, [B]."""
    if not isinstance(layout, Packed):
        return x.flatten(1), torch.full((len(x),), x[0].numel(), device=x.device)
    samples = x.split(layout.lengths_list)
    sizes_B = torch.tensor([sample.numel() for sample in samples], device=x.device)
    return pad_sequence(list(samples), batch_first=True).flatten(1), sizes_B
