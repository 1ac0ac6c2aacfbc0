"""The case tables of dual marching cubes, derived from the cube's geometry instead of listed.

Corner i of a cube lies at (i & 1, i >> 1 & 1, i >> 2) along x, y, z. A case is the sum of 2^i over its inside corners.
Nielson, Dual Marching Cubes, 2004; the order of patches is that of the published extraction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# The published order; an edge's first end decides its winding.
EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (2, 0), (3, 1), (7, 5), (6, 4))
CORNERS = tuple((i & 1, i >> 1 & 1, i >> 2) for i in range(8))
FACES = tuple((axis, side) for axis in range(3) for side in range(2))
MOST_PATCHES, MOST_EDGES = 4, 7
FIRST_BY_DECREE = {231: (4, 5, 9)}  # first patch of the one case whose published order breaks the rule

Patch = tuple[int, ...]


def inside(case: int) -> list[int]:
    """The inside corners of a case."""
    return [corner for corner in range(8) if case >> corner & 1]


def _on_face(face: tuple[int, int]) -> list[int]:
    """The four edges of a face."""
    axis, side = face
    return [n for n, ends in enumerate(EDGES) if all(CORNERS[end][axis] == side for end in ends)]


def _crossed(case: int, edges: list[int]) -> list[int]:
    return [n for n in edges if (case >> EDGES[n][0] & 1) != (case >> EDGES[n][1] & 1)]


def _links(case: int) -> list[tuple[int, int]]:
    """Pairs of crossed edges that the surface joins across a face."""
    found = []
    for face in FACES:
        crossed = _crossed(case, _on_face(face))
        if len(crossed) == 2:
            found.append((crossed[0], crossed[1]))
        elif len(crossed) == 4:  # each inside corner is cut off by itself
            for corner in inside(case):
                pair = [n for n in crossed if corner in EDGES[n]]
                if len(pair) == 2:
                    found.append((pair[0], pair[1]))
    return found


def patches(case: int) -> list[Patch]:
    """The patches of a case, each as its crossed edges in ascending order."""
    group = {n: n for n in _crossed(case, list(range(len(EDGES))))}
    for one, other in _links(case):
        old, new = group[one], group[other]
        group = {n: new if g == old else g for n, g in group.items()}
    found = [tuple(n for n in group if group[n] == root) for root in set(group.values())]

    def lowest(patch: Patch) -> tuple[bool, int]:
        corners = {end for n in patch for end in EDGES[n]} & set(inside(case))
        return patch != FIRST_BY_DECREE.get(case), min(corners)

    return sorted(found, key=lowest if case in FIRST_BY_DECREE else lambda patch: lowest(patch)[1])


def ambiguous_face(case: int) -> tuple[int, int] | None:
    """(axis, side) of the one face with four crossings of a case with five or six inside corners, else None."""
    faces = [face for face in FACES if len(_crossed(case, _on_face(face))) == 4]
    return faces[0] if len(faces) == 1 and len(inside(case)) in (5, 6) else None


@dataclass(frozen=True, eq=False)
class Tables:
    """The same as tensors: patches [256, 4, 7] (-1: none), their number [256], outward steps [256, 3] (0: none)."""

    patches: Tensor
    count: Tensor
    outward: Tensor
    edges: Tensor
    corners: Tensor


@lru_cache(maxsize=4)
def tables(device: torch.device) -> Tables:
    """The tables on a device."""
    with torch.inference_mode(False):  # kept: a later call may need gradients
        listed = torch.full((256, MOST_PATCHES, MOST_EDGES), -1)
        outward = torch.zeros(256, 3, dtype=torch.int64)
        for case in range(256):
            for slot, patch in enumerate(patches(case)):
                listed[case, slot, : len(patch)] = torch.tensor(patch)
            if (face := ambiguous_face(case)) is not None:
                outward[case, face[0]] = 2 * face[1] - 1
        count = (listed[:, :, 0] >= 0).sum(1)
        parts = (listed, count, outward, torch.tensor(EDGES), torch.tensor(CORNERS))
        return Tables(*(part.to(device) for part in parts))
