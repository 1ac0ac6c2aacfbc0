"""The orthographic camera of all previews, with the axes and scale of ``voxel_render``, and a perspective one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_shapes3d.voxel_render import ELEVATION, frame


@dataclass(frozen=True)
class Camera:
    """A view of the cube [-0.5, 0.5]^3, z up; azimuth 0 looks at the front from -y, 90 looks from +x.

    Args:
        azimuth: degrees.
        elevation: degrees above the horizon.
        size: pixels on a side.
    """

    azimuth: float
    elevation: float = ELEVATION
    size: int = 256

    @property
    def axes(self) -> Tensor:
        """[3, 3] rows: right, down, forward (away from the eye), in the scene's coordinates."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        forward = torch.tensor([-math.sin(a) * math.cos(e), math.cos(a) * math.cos(e), -math.sin(e)])
        right = torch.tensor([math.cos(a), math.sin(a), 0.0])
        return torch.stack([right, torch.linalg.cross(forward, right), forward])

    @property
    def scale(self) -> float:
        """Pixels per unit of the scene."""
        return self.size / (2 * frame(self.elevation))

    def project(self, points: Tensor) -> Tensor:
        """[N, 3] points to [N, 3] column, row (in pixels from the picture's top left corner) and depth (in units)."""
        turned = points.float() @ self.axes.to(points.device).T
        return torch.cat([turned[:, :2] * self.scale + self.size / 2, turned[:, 2:]], 1)

    def slopes(self, points: Tensor) -> Tensor:
        """The derivative of column and row by position: [1, 2, 3], the same for all points [N, 3]."""
        return (self.axes[:2] * self.scale)[None].to(points.device)


@dataclass(frozen=True)
class Perspective(Camera):
    """The same view in perspective.

    Args:
        distance: of the eye from the origin.
        fov: degrees from the left to the right edge of the picture.
    """

    distance: float = 2.0
    fov: float = 40.0

    @property
    def scale(self) -> float:
        """Pixels per unit of the scene at a distance of one unit."""
        return self.size / (2 * math.tan(math.radians(self.fov / 2)))

    def project(self, points: Tensor) -> Tensor:
        turned, depth = self._turned(points)
        return torch.cat([turned[:, :2] / depth * self.scale + self.size / 2, depth], 1)

    def slopes(self, points: Tensor) -> Tensor:
        """[N, 2, 3]."""
        turned, depth = self._turned(points)
        ahead = turned[:, :2, None] / depth[..., None] * self.axes[2].to(points.device)
        return (self.axes[:2].to(points.device) - ahead) / depth[..., None] * self.scale

    def _turned(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates (right, down, forward) about the origin [N, 3], and depths from the eye [N, 1], at least 0.1."""
        turned = points.float() @ self.axes.to(points.device).T
        return turned, (turned[:, 2:] + self.distance).clamp(min=0.1)
