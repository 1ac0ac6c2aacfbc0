"""Meshes to pictures on a CPU, without OpenGL: a depth buffer filled by all triangles at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep_shapes3d.export.camera import Camera
from fewstep_shapes3d.representations import Mesh

AMBIENT, GREY = 0.45, 0.75
CHUNK = 2**21  # candidate pixels of one pass
LIGHT = (-0.35, -0.45, -0.8)  # towards the light, as (right, down, forward): above and left of the eye


def render_mesh(mesh: Mesh, camera: Camera, samples: int = 1) -> Tensor:
    """[size, size, 3] in [0, 1] on white: the mesh's colours, or grey if it has none, under one soft light.

    Args:
        mesh: in [-0.5, 0.5]^3; one without faces gives a white picture.
        camera: the view.
        samples: per side of a pixel, for antialiasing; the cost grows with their square.
    """
    wide = Camera(camera.azimuth, camera.elevation, camera.size * samples)
    picture = _shade(mesh, wide).movedim(-1, 0)[None]
    return F.avg_pool2d(picture, samples)[0].movedim(0, -1)


def _shade(mesh: Mesh, camera: Camera) -> Tensor:
    size = camera.size
    out = torch.ones(size * size, 3)
    if not mesh.success:
        return out.view(size, size, 3)
    vertices, faces = mesh.vertices.detach().cpu().float(), mesh.faces.cpu()
    face, weights, pixel = visible(camera.project(vertices), faces, size)
    corners = faces[face]
    normals = vertex_normals(vertices, faces)
    normal = F.normalize((normals[corners] * weights[..., None]).sum(1), dim=-1) @ camera.axes.T
    lit = (normal @ F.normalize(torch.tensor(LIGHT), dim=0)).clamp(min=0)
    colour = surface_colours(mesh, face, weights)
    out[pixel] = (colour * (AMBIENT + (1 - AMBIENT) * lit)[:, None]).clamp(0, 1)
    return out.view(size, size, 3)


def surface_colours(mesh: Mesh, face: Tensor, weights: Tensor) -> Tensor:
    """[P, 3] in [0, 1] at points of a mesh, given by faces [P] and barycentric weights [P, 3]."""
    if mesh.texture is not None:
        return mesh.texture.at(face, weights)
    if mesh.colours is None:
        return torch.full_like(weights, GREY)
    return (mesh.colours.detach().cpu().float()[mesh.faces[face]] * weights[..., None]).sum(1).clamp(0, 1)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 3] unit normals: area-weighted means of the faces' normals."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(0, faces[:, i], normal)
    return F.normalize(total, dim=-1)


def visible(projected: Tensor, faces: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What each covered pixel sees.

    Args:
        projected: [V, 3] column, row, depth.
        faces: [F, 3].
        size: pixels on a side.

    Returns:
        For each of P covered pixels the nearest face [P], its barycentric weights [P, 3], and the pixel [P].
    """
    nearest = torch.full((size * size,), torch.inf)
    winner = torch.zeros(size * size, dtype=torch.int64)
    share = torch.zeros(size * size, 3)
    for face, pixel, weights in _candidates(projected, faces, size):
        depth = (projected[faces[face], 2] * weights).sum(1)
        nearest.scatter_reduce_(0, pixel, depth, "amin")
        won = depth == nearest[pixel]
        winner[pixel[won]], share[pixel[won]] = face[won], weights[won]
    covered = nearest.isfinite().nonzero()[:, 0]
    return winner[covered], share[covered], covered


def _candidates(projected: Tensor, faces: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(face, pixel, weights) of pixel centres inside triangles, in groups of triangles of similar extent."""
    corners = projected[faces, :2]
    low = (corners.amin(1) - 0.5).ceil().long().clamp(min=0)
    high = (corners.amax(1) - 0.5).floor().long().clamp(max=size - 1)
    extent = (high - low + 1).amax(1)
    extent[(high < low).any(1)] = 0
    reach = 1
    while reach < 2 * size:
        group = ((extent > reach // 2) & (extent <= reach)).nonzero()[:, 0]
        for part in group.split(max(1, CHUNK // reach**2)):
            yield _inside(corners, low, high, part, reach, size)
        reach *= 2


def _inside(
    corners: Tensor, low: Tensor, high: Tensor, part: Tensor, reach: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    line = torch.arange(reach)
    step = torch.cartesian_prod(line, line).view(-1, 2)
    place = low[part, None] + step
    a, b, c = (corners[part, None, i] for i in range(3))
    point = place + 0.5
    area = _cross(b - a, c - a)
    wa, wb = _cross(b - point, c - point) / area, _cross(c - point, a - point) / area
    weights = torch.stack([wa, wb, 1 - wa - wb], -1)
    kept = (weights >= 0).all(-1) & (place <= high[part, None]).all(-1)
    row, column = kept.nonzero(as_tuple=True)
    chosen = place[row, column]
    return part[row], chosen[:, 1] * size + chosen[:, 0], weights[row, column]


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
