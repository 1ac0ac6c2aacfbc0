"""Pictures of occupancy grids in plain torch: orthographic, shaded, a whole batch at once.

Every face that looks at the camera is covered with sample points closer together than pixels; a scatter keeps the
nearest one of each pixel. The cost grows with the surface, not with the volume. Axes as in the data: z up, azimuth
0 looks at the front from -y, positive azimuths look from +x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import invalid

AZIMUTHS, ELEVATION = (30.0, 120.0, 210.0, 300.0), 25.0
SAMPLES = 2  # per side of a pixel, for antialiasing
_PAD, _FAR, _DEPTHS, _POINTS = 2, 2**31 - 1, 2**20, 2**20
Faces = dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]]


def render_views(
    occupancy: Tensor,
    azimuths_deg: Sequence[float] = AZIMUTHS,
    elevation_deg: float = ELEVATION,
    size: int = 128,
    threshold: float = 0.5,
) -> Tensor:
    """Grey pictures [B,V,size,size] in [0,1], white background, of grids [B,R,R,R] or [B,1,R,R,R], indexed (x, y, z).

    The frame holds the cube [-0.5,0.5]^3 from every azimuth, so pictures of one elevation share one scale.

    Args:
        occupancy: bool, or numbers of which those above ``threshold`` are occupied (logits: pass 0).
        azimuths_deg: one view each.
        elevation_deg: of all views, above the horizon, between -90 and 90.
        size: pixels on a side.

    Raises:
        FewstepError: the grid has another shape, or size or elevation is out of range.
    """
    grid = occupancy[:, 0] if occupancy.ndim == 5 and occupancy.shape[1] == 1 else occupancy
    if grid.ndim != 4 or len(set(grid.shape[1:])) != 1 or not grid.shape[1]:
        raise invalid("occupancy", tuple(occupancy.shape), "[B,R,R,R] or [B,1,R,R,R]")
    if size < 1 or not -90 <= elevation_deg <= 90:
        raise invalid("size, elevation_deg", (size, elevation_deg), "at least one pixel, -90 to 90 degrees")
    solid = grid if grid.dtype == torch.bool else grid > threshold
    faces = _faces(F.pad(solid, (_PAD,) * 6))
    views = [_view(faces, solid, math.radians(azimuth), math.radians(elevation_deg), size) for azimuth in azimuths_deg]
    return torch.stack(views, 1) if views else grid.new_zeros(len(grid), 0, size, size, dtype=torch.float32)


def frame(elevation_deg: float = ELEVATION) -> float:
    """Half the width of the picture in units of the cube's side: the cube fits from all azimuths."""
    e = math.radians(abs(elevation_deg))
    return max(math.sqrt(0.5), math.sin(e) * math.sqrt(0.5) + math.cos(e) / 2)


def _faces(solid: Tensor) -> Faces:
    """Per axis and sign: sample [M], position [M,3] in voxels, unit normal [M,3] and openness [M] of the bare faces."""
    inside = F.avg_pool3d(F.avg_pool3d(solid[:, None].float(), 3, 1, 1), 3, 1, 1)
    slope = torch.stack(torch.gradient(inside[:, 0], dim=(1, 2, 3)), -1)
    found: Faces = {}
    for axis in range(3):
        for sign in (-1, 1):
            bare = (solid & ~solid.roll(-sign, axis + 1)).nonzero()
            face = torch.zeros(3, device=solid.device).index_fill(0, torch.tensor(axis, device=solid.device), sign)
            beside = bare[:, 1:] + face.long()  # measured in the open cell: inside a thin sheet the slope vanishes
            at = (bare[:, 0], *beside.unbind(1))
            normal = F.normalize(face - 6.0 * slope[at], dim=1)
            openness = 1.15 - 0.9 * inside[:, 0][at]
            found[axis, sign] = (bare[:, 0], bare[:, 1:] + face / 2, normal, openness)
    return found


def _view(faces: Faces, solid: Tensor, azimuth: float, elevation: float, size: int) -> Tensor:
    device, (batch, resolution) = solid.device, solid.shape[:2]
    a, e, fine = azimuth, elevation, size * SAMPLES
    right = torch.tensor([math.cos(a), math.sin(a), 0.0], device=device)
    away = torch.tensor([math.sin(a) * math.cos(e), -math.cos(a) * math.cos(e), math.sin(e)], device=device)
    up = torch.linalg.cross(away, right)
    axes = torch.stack([right, -up, -away], 1)
    light = F.normalize(away + 0.45 * up - 0.35 * right, dim=0)
    pixel = fine / (2 * frame(math.degrees(e)) * resolution)  # pixels per voxel
    nearest = torch.full((batch * fine * fine,), _FAR, dtype=torch.int32, device=device)
    for (axis, sign), (sample, position, normal, openness) in faces.items():
        if float(away[axis]) * sign <= 1e-6 or not len(sample):
            continue
        shade = (255 * (0.2 + 0.72 * (normal @ light).clamp(min=0)) * openness.clamp(0.35, 1)).int()
        centre = (position - _PAD + 0.5 - resolution / 2) @ axes
        # Spacing below 1/sqrt(2) pixel: no pixel inside a face can fall between the points.
        patch = _patch(axis, math.ceil(pixel / 0.7), device) @ axes
        step = max(1, _POINTS // len(patch))  # bounds the memory: noise has ten times the faces of an object
        for at in range(0, len(sample), step):
            part = slice(at, at + step)
            points = centre[part, None] + patch
            column, row = ((points[..., i] * pixel + fine / 2).long().clamp(0, fine - 1) for i in (0, 1))
            key = ((points[..., 2] / (2 * resolution) + 0.5) * _DEPTHS).int() * 256 + shade[part, None]
            target = (sample[part, None] * fine + row) * fine + column
            nearest.scatter_reduce_(0, target.flatten(), key.flatten(), "amin")
    grey = torch.where(nearest == _FAR, 1.0, (nearest % 256).float() / 255).view(batch, 1, fine, fine)
    return F.avg_pool2d(grey, SAMPLES)[:, 0]


def _patch(axis: int, count: int, device: torch.device) -> Tensor:
    """Points [count^2,3] spread evenly over a unit face across ``axis``."""
    line = (torch.arange(count, device=device) + 0.5) / count - 0.5
    patch = torch.zeros(count * count, 3, device=device)
    first, second = (other for other in range(3) if other != axis)
    patch[:, first], patch[:, second] = line.repeat_interleave(count), line.repeat(count)
    return patch
