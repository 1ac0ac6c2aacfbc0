"""Meshes as pictures for people: soft light from above, dark creases, a shadow on the ground, white behind.

Pictures for measures are drawn by ``raster`` and ``voxel_render`` and do not depend on this.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.export.raster import surface_colours, vertex_normals, visible
from fewstep_shapes3d.representations import Mesh

SAMPLES = 2  # per side of a pixel, for antialiasing
LIGHT = (-0.5, -0.6, -0.62)  # towards the light, as (right, down, forward): above and left of the eye
AMBIENT, SKY, DIRECT = 0.56, 0.16, 0.42
CREASE, WIDE = 6.0, 0.012  # darkening per unit of depth behind the surroundings; their width as share of the picture's
SHADOW, SOFT = 0.30, 0.022  # darkness of the ground's shadow, and width of its edge as share of the picture's
COARSE = 4  # the shadow's resolution is lower by this factor


def portrait(mesh: Mesh, azimuth: float, size: int) -> npt.NDArray[np.uint8]:
    """[size, size, 3] of a mesh in [-0.5, 0.5]^3, z up; one without faces gives a white picture."""
    wide = size * SAMPLES
    drawn = torch.ones(wide * wide, 3)
    if mesh.success:
        mesh = dataclasses.replace(mesh, vertices=mesh.vertices.detach().cpu().float(), faces=mesh.faces.cpu())
        _draw(mesh, Camera(azimuth, size=wide), drawn)
    picture = F.avg_pool2d(drawn.view(1, wide, wide, 3).movedim(-1, 1), SAMPLES)[0].movedim(0, -1)
    found: npt.NDArray[np.uint8] = (picture * 255).round().to(torch.uint8).numpy()
    return found


def _draw(mesh: Mesh, camera: Camera, drawn: Tensor) -> None:
    """Fill the pixels [size^2, 3] of a white picture."""
    size, vertices = camera.size, mesh.vertices
    projected = camera.project(vertices)
    a, b, c = projected[mesh.faces, :2].unbind(1)
    front = (_turned(b - a, c - a) < 0).nonzero()[:, 0]  # rows go down, so front faces are wound clockwise here
    shown, weights, pixel = visible(projected, mesh.faces[front], size)
    face = front[shown]
    corners = mesh.faces[face]
    normal = F.normalize((vertex_normals(vertices, mesh.faces)[corners] * weights[..., None]).sum(1), dim=-1)
    colour = surface_colours(mesh, face, weights)
    lit = (normal @ camera.axes.T @ F.normalize(torch.tensor(LIGHT), dim=0)).clamp(min=0)
    depth = (projected[corners, 2] * weights).sum(1)
    light = AMBIENT + SKY * normal[:, 2] + DIRECT * lit - _creases(depth, pixel, size)
    drawn *= 1 - SHADOW * _ground(vertices, mesh.faces, camera)[:, None]
    drawn[pixel] = (colour * light[:, None]).clamp(0, 1)


def _creases(depth: Tensor, pixel: Tensor, size: int) -> Tensor:
    """How much darker each covered pixel is for lying behind the mean depth around it (Luft et al. 2006)."""
    covered, depths = torch.zeros(size * size), torch.zeros(size * size)
    covered[pixel], depths[pixel] = 1.0, depth
    sums, counts = (_blurred(part, WIDE).flatten()[pixel] for part in (depths, covered))
    return (CREASE * (depth - sums / counts)).clamp(0, 0.3)


def _turned(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


def _ground(vertices: Tensor, faces: Tensor, camera: Camera) -> Tensor:
    """[size^2] in [0, 1], the soft shadow of the object on the plane that it stands on."""
    small = Camera(camera.azimuth, camera.elevation, camera.size // COARSE)
    flat = torch.cat([vertices[:, :2], vertices[:, 2:].amin().expand(len(vertices), 1)], 1)
    _, _, pixel = visible(small.project(flat), faces, small.size)
    covered = torch.zeros(small.size**2)
    covered[pixel] = 1.0
    return F.interpolate(_blurred(covered, SOFT)[None, None], (camera.size,) * 2, mode="bilinear").flatten()


def _blurred(pixels: Tensor, wide: float) -> Tensor:
    """[size, size] of pixels [size^2], blurred by a Gaussian whose standard deviation is ``wide`` * size."""
    size = math.isqrt(len(pixels))
    reach = math.ceil(3 * wide * size)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / (wide * size)) ** 2)
    weights = (weights / weights.sum()).view(1, 1, -1, 1)
    picture = F.conv2d(pixels.view(1, 1, size, size), weights, padding=(reach, 0))
    return F.conv2d(picture, weights.mT, padding=(0, reach))[0, 0]
