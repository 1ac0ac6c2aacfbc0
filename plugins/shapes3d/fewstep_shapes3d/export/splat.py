"""Gaussians to pictures on a CPU: each projected to an ellipse, composed front to back (Zwicker et al. 2001, EWA)."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.representations import Gaussians

SH_DC = 0.28209479177387814  # the constant spherical harmonic
BLUR = 0.3  # variance added to each ellipse, in square pixels, so that none falls between pixels
REACH, MOST_OPAQUE, LEAST = 3.0, 0.99, 1 / 255
BATCH = 2**14


def render_gaussians(gaussians: Gaussians, camera: Camera) -> Tensor:
    """[size, size, 3] in [0, 1] on white.

    Args:
        gaussians: in [-0.5, 0.5]^3; none give a white picture.
        camera: the view.
    """
    size = camera.size
    pixel, which, alpha = _covered(gaussians, camera)
    order = torch.argsort(camera.project(gaussians.xyz.detach().cpu())[:, 2][which], stable=True)
    order = order[torch.argsort(pixel[order], stable=True)]
    pixel, which, alpha = pixel[order], which[order], alpha[order]
    colour = (gaussians.features_dc.detach().cpu().float()[:, 0] * SH_DC + 0.5).clamp(0, 1)
    through = _transmittance(alpha, pixel)
    out = torch.zeros(size * size, 3).index_add_(0, pixel, (through * alpha)[:, None] * colour[which])
    covered = torch.zeros(size * size).index_add_(0, pixel, through * alpha)
    return (out + (1 - covered).clamp(min=0)[:, None]).view(size, size, 3).clamp(0, 1)


def _transmittance(alpha: Tensor, pixel: Tensor) -> Tensor:
    """The transmittance in front of each entry; entries are sorted by pixel and then by depth."""
    passed = torch.log1p(-alpha.double())
    before = passed.cumsum(0) - passed
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = before[first][first.cumsum(0) - 1] if len(pixel) else before
    return (before - start).exp().float()


def covariance(gaussians: Gaussians, camera: Camera) -> Tensor:
    """[N, 2, 2] of the projected ellipses in square pixels, blur included."""
    turn = turns(gaussians.rotation.detach().cpu().float())
    slopes = camera.slopes(gaussians.xyz.detach().cpu())
    axes = slopes @ turn * gaussians.scaling.detach().cpu().float()[:, None]
    return axes @ axes.mT + BLUR * torch.eye(2)


def turns(rotation: Tensor) -> Tensor:
    """[N, 3, 3] rotation matrices of unit quaternions [N, 4] (w, x, y, z); their columns are the rotated axes."""
    w, x, y, z = rotation.unbind(-1)
    return torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        -1,
    ).view(-1, 3, 3)


def _covered(gaussians: Gaussians, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """(pixel, Gaussian, alpha) wherever a Gaussian contributes."""
    size, centre = camera.size, camera.project(gaussians.xyz.detach().cpu())[:, :2]
    spread = covariance(gaussians, camera)
    inverse, opacity = torch.linalg.inv(spread), gaussians.opacity.detach().cpu().float()[:, 0]
    radius = (REACH * spread.diagonal(dim1=1, dim2=2).amax(1).sqrt()).ceil().long().clamp(1, size)
    found = []
    for reach in radius.unique().tolist():
        for part in (radius == reach).nonzero()[:, 0].split(max(1, BATCH * 64 // (2 * reach + 1) ** 2)):
            found.append(_patch(centre[part], inverse[part], opacity[part], part, reach, size))
    if not found:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    pixel, which, alpha = (torch.cat(parts) for parts in zip(*found, strict=True))
    return pixel, which, alpha


def _patch(
    centre: Tensor, inverse: Tensor, opacity: Tensor, part: Tensor, reach: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    line = torch.arange(-reach, reach + 1)
    place = centre.floor().long()[:, None] + torch.cartesian_prod(line, line).view(-1, 2)
    away = place + 0.5 - centre[:, None]
    alpha = opacity[:, None] * torch.exp(-0.5 * ((away @ inverse) * away).sum(-1))
    kept = (alpha > LEAST) & (place >= 0).all(-1) & (place < size).all(-1)
    row, column = kept.nonzero(as_tuple=True)
    chosen = place[row, column]
    return chosen[:, 1] * size + chosen[:, 0], part[row], alpha[row, column].clamp(max=MOST_OPAQUE)
