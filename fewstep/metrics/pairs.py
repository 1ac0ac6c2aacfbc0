"""Agreement of samples with those that another sampler makes from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core.layout import Layout
from fewstep.errors import invalid
from fewstep.metrics.base import PerSet


def agreement(generated: Tensor, reference: Tensor) -> float:
    """How much of the reference's variation over samples [B, ...] the generated ones reproduce (R squared).

    1 - sum |x - y|^2 / sum |y - mean(y)|^2: 1 is identity, 0 is no better than answering every noise with the mean
    of the reference, an unrelated sample of the same distribution has about -1.

    Raises:
        FewstepError: for two shapes or fewer than 2 samples.
    """
    if generated.shape != reference.shape or len(reference) < 2:
        raise invalid("generated", tuple(generated.shape), f"{tuple(reference.shape)}, at least 2 samples")
    x, y = generated.double(), reference.double()
    spread = (y - y.mean(0)).square().sum()
    return float(1 - (x - y).square().sum() / spread) if float(spread) > 0 else float(torch.equal(x, y))


class Agreement(PerSet):
    """R squared of paired samples; rows must belong to the same noise."""

    name, higher_is_better = "agreement", True

    def update(self, generated: Tensor, reference: Tensor, layout: Layout) -> None:
        """Raises FewstepError for a ragged layout: its samples have no common mean."""
        if len(generated) != layout.batch_size:
            raise invalid("layout", type(layout).__name__, "Dense, samples of one shape")
        super().update(generated, reference, layout)

    def distance(self, generated: Tensor, reference: Tensor) -> float:
        return agreement(generated, reference)
