"""Quality measures as plain functions on tensors. All but ``agreement`` compare two sets of vectors.

``fewstep.metrics.resampled`` has the same measures for many resamples of the objects at once.
"""

from __future__ import annotations

from fewstep.metrics.features import frechet, frechet_gaussians, kid, precision_recall
from fewstep.metrics.samples import agreement, mmd_rbf, sliced_wasserstein

__all__ = [
    "agreement",
    "frechet",
    "frechet_gaussians",
    "kid",
    "mmd_rbf",
    "precision_recall",
    "sliced_wasserstein",
]
