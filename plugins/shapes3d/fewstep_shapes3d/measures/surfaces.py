"""Generated coloured surfaces: what measuring needs of them, and distances to the true ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep.errors import invalid
from fewstep_shapes3d.data.attributes import PARTS, RANGE
from fewstep_shapes3d.data.surface import CENTRES
from fewstep_shapes3d.export import picture
from fewstep_shapes3d.mesh.faces import sample, without_cavities
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.voxel_render import AZIMUTHS

PIXELS, SHOWN, POINTS = 96, 16, 5000
NOTHING = math.sqrt(3.0)  # distance to an empty surface: the cube's diagonal


@dataclass(frozen=True)
class Cloud:
    """Points [K, 3] in [-0.5, 0.5] of a surface, and their colours [K, 3] in [0, 1]."""

    points: Tensor
    colours: Tensor


@dataclass(frozen=True)
class Seen:
    """What is kept of N surfaces: ``views`` uint8 [N, V, 3, S, S] from four sides, ``clouds``, and for pictures the
    first ``meshes``."""

    views: Tensor
    clouds: list[Cloud]
    meshes: list[Mesh]


@dataclass
class Surfaces:
    """Generated objects. Most meshes are freed once ``seen`` was made: those of a whole bench would fill the memory.

    Args:
        meshes: of N objects.
        latents: what they were decoded from [T, C], in ``layout``.
        azimuths: of the condition pictures, in degrees.
        encode: features [N, V, F] of pictures [N, V, 3, S, S] in [0, 1].
    """

    meshes: list[Mesh]
    latents: Tensor
    layout: Packed
    azimuths: Sequence[float]
    encode: Callable[[Tensor], Tensor] = field(repr=False)

    @cached_property
    def seen(self) -> Seen:
        """Views, clouds and the first meshes, made once."""
        meshes, self.meshes = self.meshes, []
        views = torch.stack([_views(mesh) for mesh in meshes])
        return Seen(views, [cloud_of(mesh) for mesh in meshes], meshes[:SHOWN])

    @cached_property
    def features(self) -> Tensor:
        """[N, V, F], computed once."""
        return self.encode(self.seen.views.float() / 255)

    @classmethod
    def check(cls, objects: Any) -> Surfaces:
        """``objects``. Raises FewstepError for anything but what a suite decoded."""
        if not isinstance(objects, cls):
            raise invalid("objects", type(objects).__name__, "what StructuredLatentSuite.decode returned")
        return objects


def _views(mesh: Mesh) -> Tensor:
    drawn = torch.from_numpy(np.stack([picture(mesh, azimuth, PIXELS) for azimuth in AZIMUTHS]))
    return (drawn.permute(0, 3, 1, 2) * 255).round().to(torch.uint8)


def cloud_of(mesh: Mesh, count: int = POINTS) -> Cloud:
    """Points uniform over the visible parts of a mesh; none if it has no faces."""
    if not mesh.success:
        return Cloud(torch.zeros(0, 3), torch.zeros(0, 3))
    vertices = mesh.vertices.detach().cpu().double().numpy()
    colours = np.full_like(vertices, 0.5) if mesh.colours is None else mesh.colours.detach().cpu().double().numpy()
    points, found = sample(vertices, colours, without_cavities(vertices, mesh.faces.cpu().numpy()), count)
    return Cloud(torch.from_numpy(points).float(), torch.from_numpy(found).float())


def true_cloud(coords: Tensor, features: Tensor, resolution: int) -> Cloud:
    """One surface point per voxel, on the plane fitted to the signed distances of its 8 parts, with the voxel's colour.

    Args:
        coords: [T, 3] of the voxels.
        features: [T, 11] as ``PreparedSet.surface`` gives them.
    """
    distance = features[:, :PARTS] * RANGE
    corners = torch.from_numpy(2 * (2 * CENTRES - 1)).float()  # -1 or 1 along each axis
    normal = distance @ corners / (PARTS * 0.25)  # slope per voxel: 1 for a plane, about 0 within a thin sheet
    size = normal.norm(dim=1, keepdim=True)
    step = -distance.mean(1, keepdim=True) * torch.where(size > 0.5, normal / size.clamp(min=0.5), 0.0)
    points = (coords + 0.5 + step.clamp(-0.5, 0.5)) / resolution - 0.5
    return Cloud(points, (features[:, PARTS:] + 1) / 2)


def cloud_distance(found: Cloud, truth: Cloud) -> tuple[float, float]:
    """Chamfer distance, half the sum of both mean distances in sides of the cube, and mean absolute error of the colour
    at the nearest found point. An empty surface is the cube's diagonal and 1 away."""
    if not len(found.points) or not len(truth.points):
        return (0.0, 0.0) if len(found.points) == len(truth.points) else (NOTHING, 1.0)
    # Shifted away from 0: with denormals flushed (torch.set_flush_denormal) cKDTree splits endlessly at 0.
    a, b = (cloud.points.double().numpy() + 1 for cloud in (found, truth))
    forth, _ = cKDTree(b).query(a)
    back, nearest = cKDTree(a).query(b)
    colour = (found.colours[torch.from_numpy(nearest)] - truth.colours).abs().mean()
    return float(0.5 * (forth.mean() + back.mean())), float(colour)


def view_error(views: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference [N] in [0, 1] of views uint8 [N, V, 3, S, S], over the pixels where either shows
    something; 0 where neither does."""
    shown = (views < 255).any(2, keepdim=True) | (reference < 255).any(2, keepdim=True)
    gap = (views.float() - reference.float()).abs().mean(2, keepdim=True) / 255
    return (gap * shown).flatten(1).sum(1) / shown.flatten(1).sum(1).clamp(min=1)


def latent_errors(one: Surfaces, other: Surfaces) -> tuple[Tensor, Tensor]:
    """For each object [N], over the voxels that both have: the squared difference of the latents, and the squared
    distance of the other's latents to their mean over all objects. R squared is 1 minus the ratio of the sums."""
    mine, theirs = (_rows(each.layout) for each in (one, other))
    common = [(row, theirs[key], key[0]) for key, row in mine.items() if key in theirs]
    error, spread = torch.zeros(2, one.layout.batch_size, dtype=torch.float64)
    if common:
        rows, others, objects = torch.tensor(common).T
        a, b = one.latents[rows].double(), other.latents[others].double()
        error.index_add_(0, objects, (a - b).square().sum(1))
        spread.index_add_(0, objects, (b - b.mean(0)).square().sum(1))
    return error, spread


def _rows(layout: Packed) -> dict[tuple[int, ...], int]:
    assert layout.coords is not None
    places = torch.cat([layout.index[:, None], layout.coords.long()], 1)
    return {tuple(place): row for row, place in enumerate(places.tolist())}
