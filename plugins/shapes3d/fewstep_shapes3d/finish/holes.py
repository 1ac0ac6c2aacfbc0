"""Small holes of a mesh, closed by fans of triangles."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fewstep_shapes3d.representations import Mesh

PERIMETER = 0.03  # of the largest hole that is filled, in sides of the model's cube; the reference's bound


def fill_holes(mesh: Mesh, perimeter: float = PERIMETER) -> Mesh:
    """The mesh with a fan of triangles in each hole of at most this perimeter; larger ones stay open.

    The fan's centre has the mean position and values of the hole's vertices.
    """
    small = []
    for ring in map(torch.tensor, rings(mesh.faces)):
        points = mesh.vertices[ring]
        if (points - points.roll(1, 0)).norm(dim=1).sum() <= perimeter:
            small.append(ring)
    if not small:
        return mesh
    fans = []
    for middle, ring in enumerate(small, len(mesh.vertices)):
        fans.append(torch.stack([ring, ring.roll(-1), torch.full_like(ring, middle)], 1))

    def with_middles(values: Tensor) -> Tensor:
        return torch.cat([values, torch.stack([values[ring].mean(0) for ring in small])])

    return replace(
        mesh,
        vertices=with_middles(mesh.vertices),
        faces=torch.cat([mesh.faces, *fans]),
        vertex_attrs=None if mesh.vertex_attrs is None else with_middles(mesh.vertex_attrs),
        material=None if mesh.material is None else with_middles(mesh.material),
        vertex_cube=None,
    )


def rings(faces: Tensor) -> list[list[int]]:
    """The vertices around each hole, in the winding of the missing faces.

    A hole's edge belongs to one face. Chains that do not close, because faces around them disagree, are left out.
    """
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).numpy()
    _, edge, count = np.unique(np.sort(ends, 1), axis=0, return_inverse=True, return_counts=True)
    following = defaultdict[int, list[int]](list)
    for start, end in ends[count[edge.reshape(-1)] == 1].tolist():
        following[end].append(start)  # the missing face has the edge reversed
    found = []
    while following:
        ring = [next(iter(following))]
        place = {ring[0]: 0}
        while ring[-1] in following:
            onward = following[ring[-1]].pop()
            if not following[ring[-1]]:
                del following[ring[-1]]
            if onward in place:  # a loop; holes that meet in a vertex are separate loops
                loop = ring[place[onward] :]
                found.append(loop)
                for vertex in loop[1:]:
                    del place[vertex]
                ring = ring[: place[onward] + 1]
            else:
                place[onward] = len(ring)
                ring.append(onward)
    return found
