"""Coarser meshes, for the web: vertices that share a cell of a grid become one (Rossignac and Borrel 1993)."""

from __future__ import annotations

import torch

from fewstep_shapes3d.representations import Mesh

FACES = 9000  # at most, about: 60 kB in a page
PLACES = 2**12  # steps along an axis that a vertex can stand on: such numbers compress well


def coarse(mesh: Mesh, most: int = FACES) -> Mesh:
    """The mesh with about ``most`` faces or fewer; one that has no more keeps them."""
    cells = 128
    while len(mesh.faces) > most and cells > 8:
        mesh, cells = _clustered(mesh, cells), round(0.8 * cells)
    attrs = mesh.vertex_attrs
    return Mesh((mesh.vertices * PLACES).round() / PLACES, mesh.faces, attrs)


def _clustered(mesh: Mesh, cells: int) -> Mesh:
    """One vertex in each cell of a grid with so many along an axis: the mean of those in it."""
    _, own = ((mesh.vertices + 0.5) * cells).floor().long().unique(dim=0, return_inverse=True)
    count = torch.bincount(own).float()[:, None]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(len(count), values.shape[1]).index_add_(0, own, values) / count

    faces = own[mesh.faces]
    a, b, c = faces.unbind(1)
    faces = faces[(a != b) & (b != c) & (c != a)]
    return Mesh(mean(mesh.vertices), faces, None if mesh.vertex_attrs is None else mean(mesh.vertex_attrs))
