"""The orthographic camera that all previews share; axes and scale are those of ``voxel_render``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep_shapes3d.voxel_render import ELEVATION, frame


@dataclass(frozen=True)
class Camera:
    """A view of the cube [-0.5, 0.5]^3, z up; azimuth 0 looks at the front from -y, positive ones from +x.

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
        """Pixels for a unit of the scene."""
        return self.size / (2 * frame(self.elevation))

    def project(self, points: Tensor) -> Tensor:
        """[N, 3] points to [N, 3] column, row (in pixels from the picture's top left corner) and depth (in units)."""
        turned = points.float() @ self.axes.to(points.device).T
        return torch.cat([turned[:, :2] * self.scale + self.size / 2, turned[:, 2:]], 1)
