"""Closed solids with outward faces, and the list of them that makes a piece of furniture.

Lengths are in metres, z is up and the front faces -y, as in :mod:`fewstep_shapes3d.data.mesh`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fewstep_shapes3d.data.materials import Floats, Material
from fewstep_shapes3d.data.mesh import Mesh

Point = Sequence[float] | Floats
Colour = Sequence[float]
Solid = tuple[Floats, npt.NDArray[np.int64]]  # vertices [V,3], triangles [F,3]
SEGMENTS = 20  # of a round outline: at 128 samples per side its corners cannot be seen


class Build:
    """Solids with their colours (RGB in [0,1]); ``mesh()`` joins them. Solids may overlap."""

    def __init__(self) -> None:
        self.solids: list[Solid] = []
        self.colours: list[tuple[float, ...]] = []

    def add(self, solid: Solid, colour: Colour) -> None:
        """Add a solid."""
        self.solids.append(solid)
        self.colours.append(tuple(colour))

    def box(self, low: Point, high: Point, colour: Colour) -> None:
        """An axis-aligned box between two corners."""
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        x, y = (high - low)[:2] / 2
        outline = np.array([[-x, -y], [x, -y], [x, y], [-x, y]])
        centre = (low + high) / 2
        self.add(sweep([outline] * 2, [[*centre[:2], low[2]], [*centre[:2], high[2]]]), colour)

    def bar(self, start: Point, end: Point, widths: Sequence[float], colour: Colour, *, round_: bool = False) -> None:
        """A straight bar whose horizontal section has the width ``widths[0]`` at its start, ``widths[-1]`` at its end.

        Its ends are horizontal, like the feet of slanted legs. For bars along the floor use ``box`` or ``tube``.
        """
        start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
        if start[2] > end[2]:
            start, end, widths = end, start, widths[::-1]
        outline = circle(SEGMENTS if round_ else 4) * (1 if round_ else 2**0.5)
        self.add(sweep([outline * widths[0] / 2, outline * widths[-1] / 2], [start, end]), colour)

    def tube(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """A round bar in any direction."""
        start, end = np.asarray(start, dtype=float), np.asarray(end, dtype=float)
        axis = end - start
        length = float(np.linalg.norm(axis))
        vertices, faces = sweep([circle(SEGMENTS) * width / 2] * 2, [[0, 0, 0], [0, 0, length]])
        self.add((vertices @ _frame(axis / length) + start, faces), colour)

    def lathe(self, centre: Point, profile: Sequence[tuple[float, float]], colour: Colour, sides: int = 32) -> None:
        """A body of revolution about the vertical through ``centre``: (radius, height) pairs along its outline, upwards
        outside and, for a vessel, downwards again inside."""
        outlines = [circle(sides) * max(radius, 1e-4) for radius, _ in profile]
        self.add(sweep(outlines, [np.add(centre, (0, 0, height)) for _, height in profile]), colour)

    def cushion(self, low: Point, high: Point, colour: Colour, softness: float = 0.25) -> None:
        """A box with rounded edges; ``softness`` is the rounded share of its smallest side, at most one half."""
        low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
        size = high - low
        radius = min(max(softness, 0.02), 0.5) * float(size.min())
        angles = np.linspace(0, np.pi / 2, 4)
        outlines, places = [], []
        for lift, inset in [(radius * (1 - np.cos(a)), radius * (1 - np.sin(a))) for a in angles]:
            outlines.append(rounded(size[:2] - 2 * inset, radius))
            places.append(low[2] + lift)
        outlines, places = outlines + outlines[::-1], places + [low[2] + high[2] - z for z in places[::-1]]
        centre = (low + high)[:2] / 2
        self.add(sweep(outlines, [[*centre, z] for z in places]), colour)

    def turn(self, first: int, degrees: float, pivot: Point, axis: int) -> None:
        """Rotate the solids from number ``first`` on about an axis (0 to 2) through ``pivot``, to lean a back."""
        a, b = ((1, 2), (2, 0), (0, 1))[axis]
        rotation = np.eye(3)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        rotation[a, a], rotation[a, b], rotation[b, a], rotation[b, b] = c, -s, s, c
        for at in range(first, len(self.solids)):
            vertices, faces = self.solids[at]
            self.solids[at] = ((vertices - pivot) @ rotation.T + pivot, faces)

    def mesh(self) -> Mesh:
        """All solids as one mesh, with a material for each."""
        starts = np.cumsum([0, *(len(vertices) for vertices, _ in self.solids)])
        faces = [part + start for (_, part), start in zip(self.solids, starts[:-1], strict=True)]
        material = np.repeat(np.arange(len(faces)), [len(part) for part in faces])
        vertices = np.concatenate([part for part, _ in self.solids])
        materials = [Material(np.array([*colour, 1.0])) for colour in self.colours]
        return Mesh(vertices, np.concatenate(faces), np.zeros((len(vertices), 2)), material, materials)


def circle(sides: int) -> Floats:
    """A regular polygon [sides,2] of radius 1, counter-clockwise, its first side towards -y."""
    angles = (np.arange(sides) * 2 - 1) * np.pi / sides - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def rounded(size: Floats, radius: float, steps: int = 4) -> Floats:
    """The outline [4 steps,2] of a rectangle with these sides and round corners, centred at 0."""
    half = np.maximum(size / 2, 1e-4)
    radius = min(radius, *half)
    corners = half - radius
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    angles = np.linspace(0, np.pi / 2, steps) + np.arange(4)[:, None] * np.pi / 2
    arcs = np.stack([np.cos(angles), np.sin(angles)], -1) * radius + (signs * corners)[:, None]
    return arcs.reshape(-1, 2)


def sweep(outlines: Sequence[Floats], places: Sequence[Point]) -> Solid:
    """The closed solid through horizontal, counter-clockwise outlines [N,2], each centred at its place [3]."""
    n, layers = len(outlines[0]), len(outlines)
    rings = [np.column_stack([o + np.asarray(p)[:2], np.full(n, p[2])]) for o, p in zip(outlines, places, strict=True)]
    vertices = np.concatenate([*rings, [rings[0].mean(0)], [rings[-1].mean(0)]])
    at = np.arange(n)
    after = np.roll(at, -1)
    faces = []
    for layer in range(layers - 1):
        a, b = layer * n, (layer + 1) * n
        faces += [np.stack([at + a, after + a, after + b], 1), np.stack([at + a, after + b, at + b], 1)]
    bottom, top, last = layers * n, layers * n + 1, (layers - 1) * n
    faces += [np.stack([np.full(n, bottom), after, at], 1), np.stack([np.full(n, top), at + last, after + last], 1)]
    return vertices, np.concatenate(faces).astype(np.int64)


def _frame(axis: Floats) -> Floats:
    """A right-handed rotation [3,3] whose rows are two vectors across the axis, and the axis."""
    helper = np.eye(3)[int(np.argmin(np.abs(axis)))]
    side = np.cross(helper, axis)
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(axis, side), axis])
