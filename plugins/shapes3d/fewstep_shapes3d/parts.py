"""Connected parts of what was generated: the largest is the object, the others float beside it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.core.layout import Packed
from fewstep_shapes3d.representations import Mesh


def largest_mesh(mesh: Mesh) -> Mesh:
    """The connected part of a mesh with the most faces; faces that share a vertex are connected."""
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped,unused-ignore]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped,unused-ignore]

    if not mesh.success:
        return mesh
    faces, count = mesh.faces.numpy(), len(mesh.vertices)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]).T
    edges = coo_matrix((np.ones(len(ends[0]), bool), (ends[0], ends[1])), shape=(count, count))
    _, part = connected_components(edges, directed=False)
    of_face = part[faces[:, 0]]
    kept = mesh.faces[torch.from_numpy(of_face == np.bincount(of_face).argmax())]
    return mesh.of_faces(kept)


def largest_voxels(latents: Tensor, layout: Packed) -> tuple[Tensor, Packed]:
    """The connected part with the most voxels of each sample; voxels that share a corner are connected.

    Args:
        latents: [T, C].
        layout: with coords [T, 3].
    """
    rows, lengths = [], []
    assert layout.coords is not None
    for number in range(layout.batch_size):
        row = (layout.index == number).nonzero()[:, 0]
        row = row[_largest(layout.coords[row])]
        rows.append(row)
        lengths.append(len(row))
    kept = torch.cat(rows)
    return latents[kept], Packed.of_lengths(lengths, layout.coords[kept])


def _largest(coords: Tensor) -> Tensor:
    """Which of the voxels [T, 3] belong to the largest part, bool [T]."""
    from scipy.ndimage import label  # type: ignore[import-untyped,unused-ignore]

    places = tuple(coords.long().numpy().T)
    grid = np.zeros(coords.amax(0).long().numpy() + 1, bool)
    grid[places] = True
    part = label(grid, np.ones((3, 3, 3)))[0][places]
    return torch.from_numpy(part == np.bincount(part).argmax())
