"""A mesh's colours as a texture: unwrapped by xatlas, and painted texel by texel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped,unused-ignore]
from torch import Tensor

from fewstep.errors import need
from fewstep_shapes3d.export.raster import vertex_normals, visible
from fewstep_shapes3d.finish.paint import Paint
from fewstep_shapes3d.representations import Mesh, Texture

PADDING = 4  # texels between charts, so that neither bilinear lookups nor the first mipmaps mix them


def textured(mesh: Mesh, size: int, paint: Paint) -> Mesh:
    """The mesh with a texture of ``size`` x ``size`` texels in place of values at its vertices.

    Args:
        mesh: to unwrap.
        size: texels on a side.
        paint: colours [P, 3], or with the material [P, 6], at points [P, 3].
    """
    uv, corners = unwrapped(mesh, size)
    texels = painted(mesh, uv, corners, size, paint)
    picture = (texels * 255).round().to(torch.uint8)
    material = picture[..., 3:] if picture.shape[2] > 3 else None
    texture = Texture(uv, corners, picture[..., :3], material)
    return replace(mesh, vertex_attrs=None, material=None, texture=texture)


def unwrapped(mesh: Mesh, size: int) -> tuple[Tensor, Tensor]:
    """UV coordinates [U, 2] in [0, 1], and the rows of these for each face's corners, int64 [F, 3]."""
    xatlas = need("xatlas")
    vertices = mesh.vertices.float()
    atlas, pack = xatlas.Atlas(), xatlas.PackOptions()
    pack.resolution, pack.padding = size, PADDING
    atlas.add_mesh(vertices.numpy(), mesh.faces.numpy().astype(np.uint32), vertex_normals(vertices, mesh.faces).numpy())
    atlas.generate(pack_options=pack)
    _, corners, uv = atlas[0]
    return torch.from_numpy(uv).clamp(0, 1), torch.from_numpy(corners.astype(np.int64))


def painted(mesh: Mesh, uv: Tensor, corners: Tensor, size: int, paint: Paint) -> Tensor:
    """The texels [size, size, C]: painted where a face lies, elsewhere filled from the nearest painted texel.

    A texel whose centre no face covers is painted too if an edge crosses it, so that thin faces are not missed.
    """
    flat = torch.cat([uv * size, torch.zeros(len(uv), 1)], 1)
    inner, edges = visible(flat, corners, size), _edges(flat[corners, :2], size)
    face, weights, texel = (torch.cat(column) for column in zip(edges, inner, strict=True))
    covered = torch.full((size * size,), -1).scatter_reduce(0, texel, torch.arange(len(texel)), "amax")
    row = covered[texel.unique()]  # the last of those in a texel
    face, weights, texel = face[row], weights[row], texel[row]
    values = paint((mesh.vertices.float()[mesh.faces[face]] * weights[..., None]).sum(1))
    texels = values.new_zeros(size * size, values.shape[1])
    texels[texel] = values
    bare = np.ones(size * size, bool)
    bare[texel.numpy()] = False
    row, column = distance_transform_edt(bare.reshape(size, size), return_distances=False, return_indices=True)
    return texels[torch.from_numpy(row.astype(np.int64) * size + column)]


def _edges(corners: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(face, weights, texel) of points along the edges of faces [F, 3, 2], at most half a texel apart."""
    length = (corners.roll(-1, 1) - corners).norm(dim=2).flatten()
    count = (2 * length).ceil().long() + 1
    edge = torch.repeat_interleave(torch.arange(len(count)), count)
    first = (count.cumsum(0) - count)[edge]
    share = (torch.arange(len(edge)) - first) / (count[edge] - 1).clamp(min=1)
    face, start = edge // 3, edge % 3
    row, weights = torch.arange(len(edge)), torch.zeros(len(edge), 3)
    weights[row, start], weights[row, (start + 1) % 3] = 1 - share, share
    column, line = (corners[face] * weights[..., None]).sum(1).long().clamp(0, size - 1).unbind(1)
    return face, weights, line * size + column
