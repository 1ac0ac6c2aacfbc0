"""Distances of two states, by sample."""

from __future__ import annotations

from torch import Tensor

from fewstep.core.layout import Layout, reduce_mean


def distance(difference: Tensor, weight_B: Tensor, layout: Layout, huber: float | None, reduction: str) -> Tensor:
    """The weighted mean distance.

    Args:
        difference: of the states, [B, ...] or packed.
        weight_B: [B] factor of the squared distance.
        huber: None for the mean square m; else c of sqrt(m + c^2) - c (iCT, arXiv 2310.14189, equation 7, there with
            the sum of squares and its c = 0.00054 sqrt(elements)), which is m / 2c near 0 and grows as the root.
        reduction: "element" or "sample", as in ``fewstep.core.layout.reduce_mean``.
    """
    if huber is None:
        return reduce_mean(layout.expand(weight_B, difference) * difference.square(), layout, reduction)
    root_B = (layout.mean(difference.square()) + huber**2).sqrt() - huber
    return reduce_mean(layout.expand(weight_B * root_B, difference).expand_as(difference), layout, reduction)
