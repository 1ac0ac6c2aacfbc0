"""Triangle meshes as arrays: points on them, their visible parts, and whether they are closed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def without_cavities(vertices: Floats, faces: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The faces of the connected parts that enclose a positive volume: walls of cavities are wound the other way.

    A solid is only known near its surface, so every extracted mesh has a second, invisible wall inside.
    """
    from scipy.sparse import coo_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(vertices),) * 2)
    _, part = connected_components(graph, directed=False)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    volume = np.bincount(part[faces[:, 0]], (a * np.cross(b, c)).sum(1), minlength=part.max() + 1)
    kept: npt.NDArray[np.int64] = faces[volume[part[faces[:, 0]]] > 0]
    return kept if len(kept) else faces


def watertight(faces: npt.NDArray[np.int64]) -> bool:
    """Whether every edge is shared by an even number of faces, as often one way round as the other."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low, high = ends.min(1), ends.max(1)
    _, edge = np.unique(low * (int(high.max()) + 1) + high, return_inverse=True)
    return bool(len(faces)) and not np.bincount(edge, np.where(ends[:, 0] < ends[:, 1], 1.0, -1.0)).any()


def sample(
    vertices: Floats, values: Floats, faces: npt.NDArray[np.int64], count: int, seed: int = 0
) -> tuple[Floats, Floats]:
    """``count`` points [N, 3] uniform over the area, and ``values`` [V, C] interpolated there; drawn with ``seed``."""
    draw = np.random.default_rng(seed)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = draw.choice(len(faces), count, p=area / area.sum())
    weights = draw.dirichlet((1, 1, 1), count)[..., None]
    return (weights * vertices[faces[face]]).sum(1), (weights * values[faces[face]]).sum(1)
