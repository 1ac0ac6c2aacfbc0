"""A flexible dual grid: a vertex in each voxel, and a quad around each intersected edge of the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fewstep_shapes3d.representations import Mesh
from fewstep_shapes3d.sparse.geometry import coords_of, neighbours
from torch import Tensor

from fewstep.core.layout import Packed

CENTRE = 13  # index of offset 0 in a neighbour map, whose 27 offsets step by 9, 3 and 1 along x, y and z
# The four voxels around the edge along each axis, in the order that fixes which side is the front.
AROUND = (
    ((0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)),
    ((0, 0, 0), (1, 0, 0), (1, 0, 1), (0, 0, 1)),
    ((0, 0, 0), (0, 1, 0), (1, 1, 0), (1, 0, 0)),
)


@dataclass(frozen=True, eq=False)
class DualGrid:
    """The surfaces of a batch.

    Args:
        layout: of the voxels, with coords.
        vertex: [T, 3] in units of a cell, from the voxel's lower corner.
        intersected: bool [T, 3], whether the surface crosses the voxel's edge along x, y, z.
        weight: [T], decides how quads are split; None: every quad is split along its first diagonal.
    """

    layout: Packed
    vertex: Tensor
    intersected: Tensor
    weight: Tensor | None = None

    def points(self, resolution: int) -> Tensor:
        """The vertices [T, 3] in [-0.5, 0.5]^3."""
        return (coords_of(self.layout) + self.vertex) / resolution - 0.5

    def quads(self, resolution: int) -> Tensor:
        """Rows of the corners, int64 [Q, 4], in the order of (voxel, axis).

        An edge has a quad where all four voxels around it exist and lie in the grid.
        """
        steps = torch.tensor([9, 3, 1], device=self.vertex.device)
        offsets = CENTRE + (torch.tensor(AROUND, device=steps.device) * steps).sum(-1)
        row, axis = self.intersected.nonzero().unbind(1)
        corners = neighbours(self.layout).table[offsets[axis], row[:, None]].long()
        inside = (coords_of(self.layout) < resolution).all(1)
        return corners[((corners >= 0) & inside[corners]).all(1)]

    def faces(self, quads: Tensor) -> Tensor:
        """Two triangles per quad, int64 [2 Q, 3], split along the diagonal with the larger product of end weights."""
        first, second = quads[:, [0, 1, 2, 0, 2, 3]], quads[:, [0, 1, 3, 3, 1, 2]]
        if self.weight is not None:
            w = self.weight[quads]
            first = torch.where((w[:, 0] * w[:, 2] > w[:, 1] * w[:, 3])[:, None], first, second)
        return first.reshape(-1, 3)

    def with_centres(self, points: Tensor, quads: Tensor) -> tuple[Tensor, Tensor]:
        """Vertices and faces for training: a vertex in the middle of each quad, and four triangles around it.

        The middle is the mean of the diagonals' middles, weighted by the products of their ends' weights, so that the
        weights have gradients.
        """
        w = torch.ones_like(points[:, 0]) if self.weight is None else self.weight
        a, b, c, d = points[quads].unbind(1)
        w02, w13 = (w[quads[:, i]] * w[quads[:, i + 2]] for i in (0, 1))
        share = (w02 / (w02 + w13))[:, None]
        centre = (share * (a + c) + (1 - share) * (b + d)) / 2
        middle = len(points) + torch.arange(len(quads), device=quads.device)
        ring = torch.stack([quads, quads.roll(-1, 1), middle[:, None].expand(-1, 4)], -1)
        return torch.cat([points, centre]), ring.reshape(-1, 3)

    def meshes(self, resolution: int, attributes: Tensor | None = None) -> list[Mesh]:
        """The mesh of each sample; voxels without a quad keep their vertices.

        Args:
            resolution: cells on a side of the grid.
            attributes: [T, 6] at the voxels' centres: colour, metallic, roughness, opacity.
        """
        points, faces = self.points(resolution), self.faces(self.quads(resolution))
        sample = self.layout.index[faces[:, 0]]
        counts = torch.bincount(sample, minlength=self.layout.batch_size).tolist()
        lengths = self.layout.lengths_list
        own = None if attributes is None else self.at_vertices(attributes).split(lengths)
        found = []
        parts = zip(points.split(lengths), faces.split(counts), self.layout.cu_seqlens, strict=False)
        for number, (vertices, rows, start) in enumerate(parts):
            found.append(_mesh(vertices, rows - start, None if own is None else own[number]))
        return found

    def at_vertices(self, values: Tensor) -> Tensor:
        """[T, C] at the voxels' centres to [T, C] at the vertices, trilinear between the centres that exist.

        A vertex outside the neighbours' centres takes the value at the nearest point between them.
        """
        table = neighbours(self.layout).table
        place = (self.vertex - 0.5).clamp(-1, 1)  # from the own voxel's centre
        base = place.floor().clamp(max=0)
        part = (place - base)[:, :, None]
        weights = torch.cat([1 - part, part], 2)  # [T, 3, 2]
        total, out = values.new_zeros(len(values), 1), torch.zeros_like(values)
        start = CENTRE + (base.long() * base.new_tensor([9, 3, 1]).long()).sum(1)
        rows = torch.arange(len(values), device=values.device)
        for x, y, z in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
            other = table[start + 9 * x + 3 * y + z, rows].long()
            weight = weights[:, 0, x] * weights[:, 1, y] * weights[:, 2, z] * (other >= 0)
            total += weight[:, None]
            out += weight[:, None] * values[other.clamp(min=0)]
        return out / total.clamp(min=1e-12)


def _mesh(vertices: Tensor, faces: Tensor, attributes: Tensor | None) -> Mesh:
    if attributes is None:
        return Mesh(vertices, faces)
    return Mesh(vertices, faces, attributes[:, :3], material=attributes[:, 3:])
