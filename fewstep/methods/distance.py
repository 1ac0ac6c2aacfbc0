"""Distances of two states or velocities, by sample."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Layout
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
