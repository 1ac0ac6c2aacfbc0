"""What the Gaussian decoder is asked for: small opaque Gaussians on the surface, in its colours. No renderer either."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fewstep_shapes3d.representations.gaussians import Gaussians
from torch import Tensor

from fewstep_trellis.teach.crops import Crop

SH0 = 0.28209479177387814  # value of the constant spherical harmonic
MOST = 16  # surface points of a voxel that are looked at


def gaussian_terms(crop: Crop, found: Gaussians, resolution: int) -> dict[str, Tensor]:
    """Terms of one crop's Gaussians: ``chamfer`` to the surface points of its voxel (in voxels, both ways), ``tint``
    (colour against the nearest, both ways), ``size`` (log scale against the spacing), ``faint`` (opacity short of 1).
    """
    per_voxel = len(found) // len(crop.coords)
    centres = found.xyz.view(-1, per_voxel, 3)
    rows, valid = _points_of(crop, MOST)
    apart = torch.cdist(centres, crop.points[rows])
    apart = apart.masked_fill(~valid[:, None], torch.inf)
    seen = valid.any(1)
    to_point, nearest = apart[seen].min(2)
    to_gaussian, owner = apart[seen].min(1)
    held = valid[seen]
    colour = found.features_dc.view(-1, per_voxel, 3) * SH0 + 0.5
    shade = crop.shade[rows][seen]
    tint = (colour[seen] - shade.gather(1, nearest[..., None].expand(-1, -1, 3))).abs().mean()
    back = (colour[seen].gather(1, owner[..., None].expand(-1, -1, 3)) - shade).abs().mean(-1)[held].mean()
    spacing = torch.cdist(centres, centres).detach() + 9 * torch.eye(per_voxel)
    wanted = (0.6 * spacing.min(2).values).clamp(2e-3, 1e-2).log()
    return {
        "chamfer": resolution * (to_point.mean() + to_gaussian[held].mean()),
        "tint": tint + back,
        "size": (found.scaling.view(-1, per_voxel, 3).log() - wanted[..., None]).abs().mean(),
        "faint": F.softplus(4 - found.opacity_logit).mean(),
    }


def _points_of(crop: Crop, most: int) -> tuple[Tensor, Tensor]:
    """Indices [T, most] of the first surface points of each voxel, and which of them there are."""
    order = crop.owner.argsort(stable=True)
    counts = torch.bincount(crop.owner, minlength=len(crop.coords))
    start = counts.cumsum(0) - counts
    slot = torch.arange(most)
    valid = slot < counts[:, None]
    rows = order[(start[:, None] + slot).clamp(max=max(len(order) - 1, 0))] if len(order) else valid.long()
    return rows, valid
