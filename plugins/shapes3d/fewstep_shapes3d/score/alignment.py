"""Alignment of two point clouds: iterative closest points (Besl and McKay 1992) from many starts.

Pairs go both ways, every point of either cloud with its nearest in the other, so that a similarity cannot shrink a
cloud onto a few points. Rotations are proper: an object and its mirror image stay different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ALIGNMENTS = ("unaligned", "rigid", "similarity")
COARSE, FINE = 400, 2000  # points of the first search from every start, and of the refinement
STEPS, MORE_STEPS = 15, 40
KEPT = 3  # starts that are refined
STILL = 1e-5  # relative gain of a step that ends the iteration
AWAY = 2.0  # shift of the points: with denormals flushed (torch.set_flush_denormal) cKDTree splits endlessly at 0


@dataclass(frozen=True)
class Similarity:
    """x to ``scale`` * ``rotation`` x + ``shift``."""

    scale: float
    rotation: Floats
    shift: Floats

    def __call__(self, points: Floats) -> Floats:
        moved: Floats = self.scale * points @ self.rotation.T + self.shift
        return moved


IDENTITY = Similarity(1.0, np.eye(3), np.zeros(3))


def nearest(found: Floats, truth: Floats) -> tuple[Floats, npt.NDArray[np.int64], Floats, npt.NDArray[np.int64]]:
    """Distance and index of the nearest true point of each found one [N], and the other way [M]."""
    from scipy.spatial import cKDTree  # type: ignore[import-untyped,unused-ignore]

    a, b = found + AWAY, truth + AWAY
    return (*cKDTree(b).query(a), *cKDTree(a).query(b))


def chamfer(found: Floats, truth: Floats) -> float:
    """Half the sum of both mean distances to the nearest point."""
    forth, _, back, _ = nearest(found, truth)
    return float(0.5 * (forth.mean() + back.mean()))


def align(found: Floats, truth: Floats, names: Sequence[str] = ALIGNMENTS) -> dict[str, Similarity]:
    """What brings ``found`` [N, 3] closest to ``truth`` [M, 3], by alignment: nothing, a rigid motion, a similarity.

    The result with the least Chamfer distance is taken, and an alignment may always do less: a similarity is never
    worse than the rigid motion, and that never worse than none. The points must be in random order, since the first
    ones serve as a sample.
    """
    results = {"unaligned": IDENTITY}
    for name in (name for name in ALIGNMENTS[1:] if name in names):
        candidates = [*results.values(), _searched(found, truth, name == "similarity")]
        results[name] = min(candidates, key=lambda one: chamfer(one(found), truth))
    return results


def _searched(found: Floats, truth: Floats, scaled: bool) -> Similarity:
    """The best result from all starts: a few points choose some of the starts, more points the best of these."""
    few, more = (found[:COARSE], truth[:COARSE]), (found[:FINE], truth[:FINE])
    tried = [icp(*few, start, scaled, STEPS) for start in _starts(*few, scaled)]
    tried.sort(key=lambda one: chamfer(one(few[0]), few[1]))
    refined = [icp(*more, one, scaled, MORE_STEPS) for one in tried[:KEPT]]
    return min(refined, key=lambda one: chamfer(one(more[0]), more[1]))


def _starts(found: Floats, truth: Floats, scaled: bool) -> list[Similarity]:
    """The identity, then the 24 rotations of a cube, with centroids and, for a similarity, spreads made equal."""
    from scipy.spatial.transform import Rotation  # type: ignore[import-untyped,unused-ignore]

    centre, goal = found.mean(0), truth.mean(0)
    spread, wide = (np.sqrt(np.square(points - points.mean(0)).sum(1).mean()) for points in (found, truth))
    scale = float(wide / spread) if scaled and spread > 0 and wide > 0 else 1.0
    turns = Rotation.create_group("O").as_matrix()
    return [IDENTITY, *(Similarity(scale, turn, goal - scale * turn @ centre) for turn in turns)]


def icp(found: Floats, truth: Floats, start: Similarity, scaled: bool, steps: int) -> Similarity:
    """Pair the nearest points and fit to the pairs, until there is no gain, at most ``steps`` times."""
    result, before = start, np.inf
    for _ in range(steps):
        forth, at, back, other = nearest(result(found), truth)
        error = float(np.square(forth).mean() + np.square(back).mean())
        if error > before * (1 - STILL):
            break
        before = error
        result = fitted(np.concatenate([found, found[other]]), np.concatenate([truth[at], truth]), scaled)
    return result


def fitted(points: Floats, goals: Floats, scaled: bool) -> Similarity:
    """The least-squares similarity, or rigid motion, of pairs [N, 3]. Source: Umeyama 1991, equations 40 to 43."""
    centre, goal = points.mean(0), goals.mean(0)
    a, b = points - centre, goals - goal
    left, sizes, right = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * signs) @ right
    spread = float(np.square(a).sum())
    scale = float((sizes * signs).sum()) / spread if scaled and spread > 0 else 1.0
    return Similarity(scale, rotation, goal - scale * rotation @ centre)
