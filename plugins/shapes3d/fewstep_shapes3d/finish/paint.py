"""The colour and material of a generated surface at any point near it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep_shapes3d.export.raster import GREY
from fewstep_shapes3d.export.splat import SH_DC, turns
from fewstep_shapes3d.finish.nearest import CHUNK, Surface
from fewstep_shapes3d.representations import Gaussians, Mesh

Paint = Callable[[Tensor], Tensor]
NEIGHBOURS = 8  # Gaussians that colour a point


def paint_of(mesh: Mesh, gaussians: Gaussians | None = None) -> Paint:
    """A function from points [P, 3] to colours [P, 3] in [0, 1], or [P, 6] with the material.

    Each point takes the values at the nearest point of the mesh: its vertices' interpolated, or the Gaussians' colours.
    """
    colours = torch.full_like(mesh.vertices, GREY) if mesh.colours is None else mesh.colours
    columns = [colours] if mesh.material is None else [colours, mesh.material]
    surface = Surface(mesh, torch.cat(columns, 1).clamp(0, 1))
    if gaussians is None:
        return lambda points: surface(points)[1]
    cloud = Cloud(gaussians)
    return lambda points: cloud(surface(points)[0])


class Cloud:
    """The mean colour of the Gaussians around a point, each weighted by its opacity there."""

    def __init__(self, gaussians: Gaussians) -> None:
        self.centres = gaussians.xyz.float()
        self.axes = turns(gaussians.rotation.float()).mT / gaussians.scaling.float()[..., None]
        self.opacity = torch.nn.functional.logsigmoid(gaussians.opacity_logit.float())[:, 0]
        self.colours = (gaussians.features_dc[:, 0].float() * SH_DC + 0.5).clamp(0, 1)
        self.tree = cKDTree(self.centres.numpy())

    def __call__(self, points: Tensor) -> Tensor:
        """[P, 3] in [0, 1]."""
        return torch.cat([self._mean(part) for part in points.float().split(CHUNK)])

    def _mean(self, points: Tensor) -> Tensor:
        _, near = self.tree.query(points.numpy(), min(NEIGHBOURS, len(self.centres)))
        rows = torch.from_numpy(near).view(len(points), -1)
        away = (self.axes[rows] * (points[:, None] - self.centres[rows])[..., None, :]).sum(-1)  # in deviations
        weights = (self.opacity[rows] - 0.5 * away.square().sum(-1)).softmax(1)
        return (weights[..., None] * self.colours[rows]).sum(1)
