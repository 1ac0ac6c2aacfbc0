"""Quality measures: small pure functions, and classes that collect batches and call them.

``Metric`` is the interface of a class that a plugin registers with ``register_metrics``.
"""

from __future__ import annotations

from fewstep.metrics.base import Metric
from fewstep.metrics.features import Frechet, Kid, frechet, frechet_gaussians, kid, polynomial_kernel
from fewstep.metrics.pairs import Agreement, agreement
from fewstep.metrics.samples import (
    EnergyDistance,
    Mmd,
    SlicedWasserstein,
    energy_distance,
    mmd_rbf,
    sliced_wasserstein,
)
from fewstep.metrics.shapes import Chamfer, VolumeIou, chamfer, volume_iou

__all__ = [
    "Agreement",
    "Chamfer",
    "EnergyDistance",
    "Frechet",
    "Kid",
    "Metric",
    "Mmd",
    "SlicedWasserstein",
    "VolumeIou",
    "agreement",
    "chamfer",
    "energy_distance",
    "frechet",
    "frechet_gaussians",
    "kid",
    "mmd_rbf",
    "polynomial_kernel",
    "sliced_wasserstein",
    "volume_iou",
]
