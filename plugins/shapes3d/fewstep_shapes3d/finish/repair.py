"""Meshes without duplicate and degenerate faces, wound outward, and with small holes filled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array  # type: ignore[import-untyped,unused-ignore]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped,unused-ignore]

from fewstep_shapes3d.finish.holes import fill_holes
from fewstep_shapes3d.mesh.faces import Floats, watertight, without_cavities
from fewstep_shapes3d.representations import Mesh

Faces = npt.NDArray[np.int64]


def repaired(mesh: Mesh) -> Mesh:
    """The mesh with distinct faces, wound outward, and its small holes filled.

    A closed mesh also loses the walls of inner cavities, which nobody sees. An open one has no inside: each of its
    parts is wound consistently, with a positive volume (see ``outward``), and its small holes are filled.
    """
    mesh = distinct(mesh)
    if not mesh.success:
        return mesh
    vertices, faces = mesh.vertices.double().numpy(), mesh.faces.numpy()
    if watertight(faces):
        return mesh.of_faces(torch.from_numpy(without_cavities(vertices, faces)))
    return fill_holes(replace(mesh, faces=torch.from_numpy(outward(vertices, faces))))


def distinct(mesh: Mesh) -> Mesh:
    """Remove faces with coinciding corners, duplicate faces, and pairs of faces back to back.

    Vertices at the same position are merged, and those without a face removed. A closed mesh stays closed.
    """
    _, first, same = np.unique(mesh.vertices.numpy(), axis=0, return_index=True, return_inverse=True)
    faces = first[same.reshape(-1)][mesh.faces.numpy()]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    lowest = faces.argmin(1)
    turned = np.take_along_axis(faces, (lowest[:, None] + np.arange(3)) % 3, 1)  # from the lowest corner on
    turned = np.unique(turned, axis=0)
    _, pair, count = np.unique(np.sort(turned, 1), axis=0, return_inverse=True, return_counts=True)
    return mesh.of_faces(torch.from_numpy(turned[count[pair.reshape(-1)] == 1]))


def outward(vertices: Floats, faces: Faces) -> Faces:
    """Faces flipped so that neighbours agree and each part encloses a positive volume about its centre.

    A part with one side only, such as a Möbius strip, is left as it is. Faces are neighbours if they are the only two
    on an edge.
    """
    count = len(faces)
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    owner = np.repeat(np.arange(count), 3)
    keys = ends.min(1) * len(vertices) + ends.max(1)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    starts = starts[np.diff(starts, append=len(keys)) == 2]
    one, other = order[starts], order[starts + 1]
    f, g = owner[one], owner[other]
    # The graph has each face twice, as it is and flipped. Connecting neighbours that agree gives sheets, two for each
    # part, of which one is the other flipped.
    alike = np.where(ends[one, 0] == ends[other, 1], 0, count)
    rows, columns = np.concatenate([f, f + count]), np.concatenate([g + alike, g + count - alike])
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(2 * count,) * 2)
    _, sheet = connected_components(graph, directed=False)
    corners = vertices[faces]
    twice = np.concatenate([corners.mean(1)] * 2)
    size = np.bincount(sheet)
    middle = np.stack([np.bincount(sheet, twice[:, axis]) / size for axis in range(3)], 1)
    a, b, c = (corners - middle[sheet[:count], None]).transpose(1, 0, 2)
    volume = (a * np.cross(b, c)).sum(1)
    total = np.bincount(sheet, np.concatenate([volume, -volume]))
    flip = total[sheet[count:]] > total[sheet[:count]]
    return np.where(flip[:, None], faces[:, ::-1], faces)
