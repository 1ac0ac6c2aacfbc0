"""The passes of an iteration, weighed so that a sample (or an element) counts alike in whichever pass it lies.

A loss is a mean over its own pass. Each gradient is taken times the pass's size over that of the first pass, which is
known at once; the factor that is common to all is put right when the last size is known. Passes of one size keep every
bit of a plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fewstep.core.batch import Batch
from fewstep.core.objective import Objective

Terms = dict[str, float]


class Pass(NamedTuple):
    """One forward and backward pass: its loss terms, and how many elements or samples they are means over."""

    terms: Terms
    size: int


def size_of(batch: Batch, objective: Objective[Any]) -> int:
    """What the objective's losses on this batch are means over."""
    return max(batch.x0.numel() if objective.reduction == "element" else batch.layout.batch_size, 1)


def common_factor(passes: Sequence[Pass]) -> float:
    """What the summed gradients lack once each was taken times size / (first size x passes)."""
    return len(passes) * passes[0].size / sum(p.size for p in passes)


def mean_terms(passes: Sequence[Pass]) -> Terms:
    """The loss terms over all samples of the iteration."""
    total = sum(p.size for p in passes)
    return {name: sum(p.terms[name] * (p.size / total) for p in passes) for name in passes[0].terms}
