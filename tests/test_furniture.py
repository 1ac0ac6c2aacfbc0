"""Procedural furniture: closed solids, outward faces, the same piece from the same numbers, variety."""

from __future__ import annotations

import numpy as np
import pytest
from fewstep_shapes3d.furniture import KINDS, Piece
from fewstep_shapes3d.furniture.solids import Build


def edges(faces: np.ndarray) -> np.ndarray:
    """Directed edges [3F,2]."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume inside a closed surface; positive where faces look outwards."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_solid_is_closed_and_looks_outwards(kind: str) -> None:
    for number in range(12):
        build = KINDS[kind][1](np.random.default_rng((7, number)))
        for vertices, faces in build.solids:
            directed = edges(faces)
            assert len(np.unique(directed, axis=0)) == len(directed)  # no edge twice in one direction
            assert {*map(tuple, directed)} == {*map(tuple, directed[:, ::-1])}  # each edge has its opposite
            assert volume(vertices, faces) > 0
        heights = build.mesh().vertices[:, 2]
        assert -0.02 < heights.min() < 0.02  # it stands on the floor


def test_same_numbers_same_piece_other_numbers_another() -> None:
    first, again, other = (Piece.draw(3, n).load() for n in (5, 5, 6))
    assert np.array_equal(first.vertices, again.vertices)
    assert first.vertices.shape != other.vertices.shape or not np.allclose(first.vertices, other.vertices)


def test_kinds_come_by_their_weights() -> None:
    drawn = [Piece.draw(0, n).kind for n in range(2000)]
    total = sum(weight for weight, _ in KINDS.values())
    for kind, (weight, _) in KINDS.items():
        assert abs(drawn.count(kind) / 2000 - weight / total) < 0.03


def test_solids_have_the_volume_of_their_formula() -> None:
    build = Build()
    build.box((0, 0, 0), (1, 2, 3), (1, 1, 1))
    build.bar((0, 0, 0), (0.5, 0, 2), (0.2, 0.2), (1, 1, 1))
    build.tube((0, 0, 0), (1, 1, 1), 0.2, (1, 1, 1))
    build.lathe((0, 0, 0), [(1, 0), (0.5, 2)], (1, 1, 1), sides=200)
    box, bar, tube, cone = (volume(*solid) for solid in build.solids)
    assert box == pytest.approx(6)
    assert bar == pytest.approx(0.2**2 * 2)  # sheared sections keep their area
    assert tube == pytest.approx(np.pi * 0.1**2 * 3**0.5, rel=0.03)
    assert cone == pytest.approx(np.pi * 2 / 3 * (1 + 0.5 + 0.25), rel=1e-3)
