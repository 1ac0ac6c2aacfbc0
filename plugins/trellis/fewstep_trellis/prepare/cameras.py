"""Where the cameras of TRELLIS's pictures stand, and the ``transforms.json`` that says so.

Directions follow a Hammersley sequence on the sphere, shifted at random for each object. Source: the rules of TRELLIS's
data toolkit (commit 6b0d6475).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fewstep_shapes3d.data.views import Camera, generator

from fewstep_trellis.official.files import picture_name

RADIUS, FOV = 2.0, 40.0  # distance and degrees, for the pictures that features are taken from
NARROW, WIDE = 10.0, 70.0  # degrees between which the condition's cameras are drawn
SPHERE = math.sqrt(3) / 2  # radius of the sphere around the unit cube


@dataclass(frozen=True)
class Shot:
    """A camera that looks at the origin from ``distance``, with a field of view ``fov`` in degrees."""

    camera: Camera
    distance: float
    fov: float


def feature_shots(key: str, count: int, seed: int) -> list[Shot]:
    """From all around, at one distance."""
    return [Shot(camera, RADIUS, FOV) for camera in _around(count, generator(f"{key}/renders", seed))]


def condition_shots(key: str, count: int, seed: int) -> list[Shot]:
    """From all around, near and far: 1 / distance^2 is uniform, and the cube's bounding sphere fills the picture."""
    draw = generator(f"{key}/renders_cond", seed)
    cameras = _around(count, draw)
    far, near = (SPHERE / math.sin(math.radians(fov / 2)) for fov in (NARROW, WIDE))
    distances = (1 / np.sqrt(draw.uniform(1 / far**2, 1 / near**2, count))).tolist()
    return [
        Shot(camera, distance, 2 * math.degrees(math.asin(SPHERE / distance)))
        for camera, distance in zip(cameras, distances, strict=True)
    ]


def transforms(shots: Sequence[Shot]) -> dict[str, Any]:
    """The content of a ``transforms.json``: camera to world, in Blender's camera axes (x right, y up, z backward)."""
    frames = []
    for number, shot in enumerate(shots):
        matrix, axes = np.eye(4), shot.camera.axes
        matrix[:3, :3], matrix[:3, 3] = axes.T, axes[2] * shot.distance
        angle = math.radians(shot.fov)
        frames.append({"file_path": picture_name(number), "camera_angle_x": angle, "transform_matrix": matrix.tolist()})
    return {"aabb": [[-0.5] * 3, [0.5] * 3], "scale": 1.0, "offset": [0.0] * 3, "frames": frames}


def _around(count: int, draw: np.random.Generator) -> list[Camera]:
    first, second = draw.uniform(size=2)
    found = []
    for number in range(count):
        height = 1 - 2 * (number + first) / count
        turn = (_mirrored(number) + second) % 1
        found.append(Camera(turn * 360, math.degrees(math.asin(height))))
    return found


def _mirrored(number: int) -> float:
    """The binary digits of a number, mirrored at the radix point: 1, 2, 3, 4 give 1/2, 1/4, 3/4, 1/8."""
    value, share = 0.0, 0.5
    while number:
        value, number, share = value + share * (number & 1), number >> 1, share / 2
    return value
