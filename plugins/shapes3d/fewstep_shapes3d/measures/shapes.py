"""Generated objects, the features of their rendered views, and distances between sets of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.suite import Record
from fewstep.errors import invalid
from fewstep.metrics.resampled import (
    frechet_infinity,
    frechet_resampled,
    kid_resampled,
    precision_recall_resampled,
)
from fewstep_shapes3d.measures.features import MetricEncoder
from fewstep_shapes3d.voxel_render import render_views

PIXELS, BATCH = 96, 32
QUARTERED = 40  # objects needed to extrapolate: with fewer, a resample may leave a quarter of them empty
MetricNet = Callable[[Tensor], Tensor]


class ViewEncoder:
    """Features of rendered views: four of a grid, or any number of given pictures.

    Args:
        net: pictures [B, H, W] or [B, 3, H, W] to features [B, F]; None takes ``MetricEncoder`` at 96 pixels, made on
            first use. 96 pixels separate the methods at least as well as 128 or 192, at a tenth of the cost of the full
            260.
    """

    def __init__(self, net: MetricNet | None = None) -> None:
        self._net, self.device = net, torch.device("cpu")

    @cached_property
    def net(self) -> MetricNet:
        """The network, on its device."""
        net = self._net
        if net is None:
            net = encoder = MetricEncoder()
            encoder.size = PIXELS
        return net.to(self.device) if isinstance(net, nn.Module) else net

    def to(self, device: torch.device) -> None:
        """Compute on this device."""
        self.device = device
        self.__dict__.pop("net", None)

    @torch.inference_mode()
    def __call__(self, grids: Tensor) -> Tensor:
        """[N, V, F] on the CPU, of boolean grids [N, R, R, R]."""
        return self.of_pictures(render_views(grids, size=PIXELS))

    @torch.inference_mode()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """[N, V, F] on the CPU, of grey pictures [N, V, H, W] or coloured ones [N, V, 3, H, W] in [0, 1]."""
        parts = [self.net(part.to(self.device)).cpu() for part in pictures.flatten(0, 1).split(BATCH)]
        return torch.cat(parts).reshape(*pictures.shape[:2], -1)


@dataclass(frozen=True)
class Shapes:
    """Generated objects: boolean grids [N, R, R, R], the latents they came from, and their features once asked for."""

    grids: Tensor
    latents: Tensor
    encode: Callable[[Tensor], Tensor]

    @cached_property
    def features(self) -> Tensor:
        """[N, V, F], computed once."""
        return self.encode(self.grids)

    @classmethod
    def check(cls, objects: Any) -> Shapes:
        """``objects``. Raises FewstepError for anything but what a suite decoded."""
        if not isinstance(objects, cls):
            raise invalid("objects", type(objects).__name__, "what StructureSuite.decode returned")
        return objects


def distances(features: Tensor, reference: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Distances of features [N, V, F] to those of the N true objects with the same pictures, [B] each; see
    ``fewstep.metrics.resampled`` for ``counts`` [B, N].

    Frechet pools the views (V N rows of one view each), since joined or averaged views are too few to fill
    covariances of 32 components: with 96 objects, the distance of a teacher to itself under other noise, which is all
    sampling error, was 0.31 (averaged) and 0.51 (joined) of the difference between 1 and 25 steps, against 0.27 pooled.
    KID, precision and recall need no covariance but independent rows, so an object's views are joined into one row.
    """
    x, y = features.flatten(1), reference.flatten(1)
    precision, recall = precision_recall_resampled(x, y, counts)
    enough = len(features) >= QUARTERED
    return {
        "frechet": frechet_resampled(features, reference, counts),
        **({"frechet_infinity": frechet_infinity(features, reference, counts)} if enough else {}),
        "kid": kid_resampled(x, y, counts),
        "precision": precision,
        "recall": recall,
    }


def teacher_distances(features: Tensor, teacher: Record, other: Record | None, counts: Tensor) -> dict[str, Tensor]:
    """Fréchet distances to the teacher's samples from the same noise and, if there are any, from other noise."""
    records = {"other_frechet": other, "teacher_frechet": teacher}
    return {
        name: frechet_resampled(features, record["features"], counts)
        for name, record in records.items()
        if record is not None
    }
