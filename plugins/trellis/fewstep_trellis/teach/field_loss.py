"""What the mesh decoder is asked for: the field at the corners of the fine cubes, colours and normals near the surface.

No renderer is needed: comparing with the surface itself costs a thousandth of rendering it on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fewstep_shapes3d.data.targets import CLIP
from torch import Tensor

from fewstep_trellis.teach.crops import LID, WALL, Crop

SDF, DEFORM, WEIGHTS, COLOUR = slice(0, 8), slice(8, 32), slice(32, 53), slice(53, 101)  # features of a cube
BITS = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])  # corner i of a cube: x fastest
NEAR = 0.25  # voxels: where colours and normals are asked for, one fine cube to each side of the surface


def at_corners(raw: Tensor, cubes: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Values at corners as mesh extraction reads them: the mean over the cubes that share a corner.

    Args:
        raw: [N, 101] features of the cubes at ``cubes`` int [N, 3].
        corners: int64 [P, 3], all corners of these cubes, each once, in C order.

    Returns:
        Signed distance [P], 1 standing for half a voxel and without extraction's bias, and attributes [P, 6] in [0, 1].
    """
    side = int(corners.max()) + 1
    key = (cubes[:, None].long() + BITS).flatten(0, 1)
    wanted, known = ((k[:, 0] * side + k[:, 1]) * side + k[:, 2] for k in (key, corners))
    at = torch.searchsorted(known, wanted)
    values = torch.cat([raw[:, SDF].reshape(-1, 1), raw[:, COLOUR].reshape(-1, 6)], 1)
    total = torch.zeros(len(corners), 7, dtype=raw.dtype).index_add(0, at, values)
    mean = total / torch.bincount(at, minlength=len(corners))[:, None]
    return mean[:, 0], mean[:, 1:].sigmoid()


def field_terms(crop: Crop, raw: Tensor, cubes: Tensor, bias: float) -> dict[str, Tensor]:
    """Terms of one crop: ``sdf`` (absolute error, one-sided beyond half a voxel), ``sign`` (cross-entropy), ``colour``
    and ``normal`` (absolute errors near the surface), ``lid`` (how far what should close the mesh at the border of the
    grid is inside), ``shape`` (size of deformations and weights)."""
    value, attributes = at_corners(raw, cubes, crop.corners)
    value, truth = value + bias, crop.distance / CLIP
    error = (value - truth).abs()
    # Farther than the targets reach, any value on the right side will do.
    beyond = (crop.distance > CLIP - WALL - 0.01) | (truth < -0.99)
    error = torch.where(beyond & (value.abs() > truth.abs()) & (value * truth > 0), 0.0, error)
    near = crop.distance.abs() < NEAR
    gap = (attributes - crop.attributes).abs()[near]
    lid = crop.border & (truth < LID + 1e-3)
    return {
        "sdf": error.mean() + error[near].mean(),
        "sign": F.binary_cross_entropy_with_logits(-8 * value, (truth < 0).to(value)),
        "colour": gap[:, :3].mean(),
        "normal": gap[:, 3:].mean(),
        "lid": (LID - value[lid]).relu().sum() / max(int(lid.sum()), 1),
        "shape": raw[:, DEFORM].square().mean() + raw[:, WEIGHTS].square().mean(),
    }
