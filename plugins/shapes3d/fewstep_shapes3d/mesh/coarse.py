"""Coarser meshes, for the web: vertices that share a cell of a grid become one (Rossignac and Borrel 1993)."""

from __future__ import annotations

import torch

from fewstep_shapes3d.export.raster import vertex_normals
from fewstep_shapes3d.mesh.faces import without_cavities
from fewstep_shapes3d.representations import Mesh

FACES = 14000  # at most, about: 100 kB in a page
PLACES = 2**12  # steps along an axis that vertices are rounded to: such numbers compress well


def coarse(mesh: Mesh, most: int = FACES) -> Mesh:
    """The mesh with about ``most`` faces or fewer and without inner walls; one with no more faces keeps all."""
    cells = 128
    if len(mesh.faces) > most:
        seen = without_cavities(mesh.vertices.double().numpy(), mesh.faces.numpy())
        mesh = mesh.of_faces(torch.from_numpy(seen))
    while len(mesh.faces) > most and cells > 8:
        mesh, cells = _clustered(mesh, cells), round(0.85 * cells)
    mesh = mesh.of_faces(mesh.faces)
    return Mesh((mesh.vertices * PLACES).round() / PLACES, mesh.faces, mesh.vertex_attrs)


def _clustered(mesh: Mesh, cells: int) -> Mesh:
    """Merge vertices in the same cell of a grid of ``cells`` per axis, with normals in the same octant, to their mean.

    The octants keep both sides of a thin wall apart.
    """
    octant = (vertex_normals(mesh.vertices, mesh.faces) > 0).long()
    places = torch.cat([((mesh.vertices + 0.5) * cells).floor().long(), octant], 1)
    _, own = places.unique(dim=0, return_inverse=True)
    count = torch.bincount(own).float()[:, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(count), values.shape[1]).index_add_(0, own, values) / count

    faces = own[mesh.faces]
    a, b, c = faces.unbind(1)
    faces = faces[(a != b) & (b != c) & (c != a)]
    return Mesh(mean(mesh.vertices), faces, None if mesh.vertex_attrs is None else mean(mesh.vertex_attrs))
