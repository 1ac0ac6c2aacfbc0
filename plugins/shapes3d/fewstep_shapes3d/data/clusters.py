"""Near-duplicates by voxel overlap, and a split into training and test that none of them crosses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fewstep.errors import invalid
from fewstep_shapes3d.data.voxels import Grid

LEFT_OUT, TRAIN, TEST, VALIDATION = 0, 1, 2, 3
SPLITS = ("left out", "train", "test", "validation")
THRESHOLD = 0.7
Ints = npt.NDArray[np.int64]


def overlap(a: Grid, b: Grid) -> npt.NDArray[np.float32]:
    """Intersection over union of all grids a [N,R,R,R] with all grids b [M,R,R,R]: [N,M]; 1 for two empty ones."""
    flat_a, flat_b = (grid.reshape(len(grid), -1).astype(np.float32) for grid in (a, b))
    common = flat_a @ flat_b.T
    union = flat_a.sum(1)[:, None] + flat_b.sum(1)[None] - common
    iou: npt.NDArray[np.float32] = np.where(union > 0, common / np.maximum(union, 1), 1).astype(np.float32)
    return iou


def mirror(grid: Grid) -> Grid:
    """The mirror images [..., R,R,R], reversed in x. Their pictures are the flipped pictures."""
    return np.flip(grid, -3)


def coarsen(grids: Grid, resolution: int = 32) -> Grid:
    """Grids [N,R,R,R] at ``resolution`` if R is a multiple of it, else unchanged; any voxel fills its cell."""
    count, size = grids.shape[:2]
    if size <= resolution or size % resolution:
        return grids
    block = size // resolution
    coarse: Grid = np.logical_or.reduce(grids.reshape(count, *(resolution, block) * 3), axis=(2, 4, 6))
    return coarse


def cluster(grids: Grid, threshold: float = THRESHOLD) -> Ints:
    """Cluster numbers [N] from 0: objects that overlap by more than ``threshold``, directly or in a chain, share one.

    Mirror images count too, because training mirrors its objects.
    """
    from scipy.sparse import csr_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

    near = np.maximum(overlap(grids, grids), overlap(grids, mirror(grids))) > threshold
    _, labels = connected_components(csr_array(near), directed=False)
    return np.asarray(labels, dtype=np.int64)


def split(
    labels: Ints, counts: Ints, test_clusters: int, resolution: int = 32, seed: int = 0, fewer: bool = False
) -> npt.NDArray[np.uint8]:
    """Split codes [N]: ``test_clusters`` random clusters give one test object each; their other members are left out.

    Args:
        labels: cluster numbers [N].
        counts: occupied voxels [N]. A test object has 200 to 6000 at resolution 32 (in proportion to R^2 at others):
            fewer is a speck, more a block. A cluster without such a member is for training.
        test_clusters: how many clusters to test on, at least 1.
        fewer: take fewer if there are not enough, or if they are more than a quarter of all clusters; but 2, without
            which no suite can measure, where there are 3.

    Raises:
        FewstepError: there are not enough clusters for that and at least one to train on.
    """
    area = (resolution / 32) ** 2
    fit = (counts >= 200 * area) & (counts <= 6000 * area)
    eligible = np.unique(labels[fit])
    distinct = len(np.unique(labels))
    most = min(len(eligible), distinct - 1)
    if fewer:
        test_clusters = min(test_clusters, max(2, distinct // 4), max(1, most))
    if not 1 <= test_clusters <= most:
        raise invalid("test_clusters", test_clusters, f"1 to {most}: the source has no more distinct objects")
    draw = np.random.default_rng(seed)
    codes = np.full(len(labels), TRAIN, dtype=np.uint8)
    for label in draw.permutation(eligible)[:test_clusters]:
        codes[labels == label] = LEFT_OUT
        codes[draw.choice(np.flatnonzero((labels == label) & fit))] = TEST
    return codes
