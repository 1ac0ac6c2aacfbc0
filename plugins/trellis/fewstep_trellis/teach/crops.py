"""Pieces of objects: 64 cubes per voxel make a whole object too expensive for a training step on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from fewstep_shapes3d.data.prepared import PreparedSet
from fewstep_shapes3d.data.surface import SUBDIVISION
from fewstep_shapes3d.data.targets import CLIP, Target, load_target
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_trellis.slat_dataset import cube_around

LID = 0.25  # least value of the field (1 is half a voxel) on the border of the grid
WALL = 0.125  # voxels by which decoders thicken every side: sheets one cube thick would come out full of holes


@dataclass(frozen=True)
class Crop:
    """Some voxels of one object, with the targets on and in them.

    Args:
        coords: int64 [T, 3] voxels, and ``features`` [T, 11] of them.
        corners: int64 [P, 3], every corner of their fine cubes once, in C order; ``distance`` [P] in voxels,
            ``border`` [P] which are on the grid's border, ``attributes`` [P, 6] colour and (normal + 1) / 2, in [0, 1].
        points: [K, 3] surface points inside these voxels, ``shade`` [K, 3] their colours, ``owner`` [K] their voxel.
    """

    coords: Tensor
    features: Tensor
    corners: Tensor
    border: Tensor
    distance: Tensor
    attributes: Tensor
    points: Tensor
    shade: Tensor
    owner: Tensor

    def to(self, device: torch.device) -> Crop:
        """The crop on another device."""
        return Crop(**{name: value.to(device) for name, value in vars(self).items()})


def cut(coords: Tensor, features: Tensor, target: Target, rows: Tensor, resolution: int) -> Crop:
    """The crop of these rows."""
    mine = coords[rows]
    side = resolution * SUBDIVISION + 1
    offsets = torch.cartesian_prod(*[torch.arange(SUBDIVISION + 1)] * 3)
    wanted = torch.unique(_key((mine[:, None] * SUBDIVISION + offsets).flatten(0, 1), side))
    known, order = _key(target.corners, side).sort()
    at = order[torch.searchsorted(known, wanted)]
    attributes = torch.cat([target.colour[at], (target.normal[at] + 1) / 2], 1)
    voxel = torch.full((resolution**3,), -1).index_put((_key(mine, resolution),), torch.arange(len(mine)))
    cell = ((target.points + 0.5) * resolution).long().clamp(0, resolution - 1)
    owner = voxel[_key(cell, resolution)]
    inside = owner >= 0
    points, shade, owner = target.points[inside], target.shade[inside], owner[inside]
    corners = target.corners[at]
    border = ((corners == 0) | (corners == SUBDIVISION * resolution)).any(1)
    distance = closed(target.distance[at] - WALL, border)
    return Crop(mine, features[rows], corners, border, distance, attributes, points, shade, owner)


def closed(distance: Tensor, border: Tensor) -> Tensor:
    """Distances [P], made to be outside on the grid's ``border``: extraction leaves a mesh open where it meets that.

    Every object meets it, since its longest side is scaled to the whole grid. The lid lies half a cube inside.
    """
    return torch.where(border, distance.clamp(min=LID * CLIP), distance)


def draw_crop(data: PreparedSet, folder: Path, voxels: int, generator: torch.Generator) -> Crop:
    """A random cube of at most ``voxels`` voxels of a random training object, mirrored half the time."""
    pick, flip = (int(torch.randint(top, (), generator=generator)) for top in (len(data.train), 2))
    index = int(data.train[pick])
    coords, features = data.surface(index, bool(flip))
    target = load_target(folder, index)
    if flip:
        target = target.flipped(data.resolution * SUBDIVISION)
    centre = coords[int(torch.randint(len(coords), (), generator=generator))]
    return cut(coords, features, target, cube_around(coords, voxels, centre), data.resolution)


def whole(data: PreparedSet, folder: Path, index: int) -> Crop:
    """All of an object."""
    coords, features = data.surface(index)
    return cut(coords, features, load_target(folder, index), torch.arange(len(coords)), data.resolution)


def layout_of(crops: list[Crop]) -> Packed:
    """The layout of a batch of crops."""
    coords = torch.cat([crop.coords for crop in crops]).int()
    return Packed.of_lengths([len(crop.coords) for crop in crops], coords, coords.device)


def _key(coords: Tensor, side: int) -> Tensor:
    return (coords[:, 0] * side + coords[:, 1]) * side + coords[:, 2]
