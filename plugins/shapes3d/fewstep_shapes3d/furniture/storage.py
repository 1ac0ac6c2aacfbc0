"""Shelves, cupboards, wardrobes, chests of drawers. Each function draws its parameters and builds the piece."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fewstep_shapes3d.furniture import colours
from fewstep_shapes3d.furniture.seating import Draw, four_legs
from fewstep_shapes3d.furniture.solids import Build, Point


def fronts(build: Build, draw: Draw, low: Point, high: Point, colour: colours.RGB, *, drawers: bool) -> None:
    """A closed carcass between two corners with drawers or doors towards -y."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    build.box((x0, y0, z0), (x1, y1, z1), colour)
    cover = colour if draw.random() < 0.5 else colours.body(draw)
    handle, style = colours.metal(draw), draw.choice(["knob", "bar", "none"])
    width, height, gap, out = x1 - x0, z1 - z0, 0.012, 0.02
    if drawers:
        rows, columns = max(1, round(height / draw.uniform(0.14, 0.24))), 1 if width < 0.7 else int(draw.integers(1, 4))
    else:
        rows, columns = 1 if height < 1.2 or draw.random() < 0.6 else 2, max(1, round(width / draw.uniform(0.4, 0.6)))
    for z in np.arange(rows) / rows * height + z0:
        for x in np.arange(columns) / columns * width + x0:
            right, up = x + width / columns - gap, z + height / rows - gap
            build.box((x + gap, y0 - out, z + gap), (right, y0, up), cover)
            middle, centre = (x + gap + right) / 2, (z + gap + up) / 2
            if style == "knob":
                build.cushion(
                    (middle - 0.022, y0 - out - 0.04, centre - 0.022),
                    (middle + 0.022, y0 - out, centre + 0.022),
                    handle,
                    0.5,
                )
            elif style == "bar" and drawers:
                build.box(
                    (middle - 0.07, y0 - out - 0.03, centre - 0.012), (middle + 0.07, y0 - out, centre + 0.012), handle
                )
            elif style == "bar":
                side = right - 0.05 if round((x - x0) / width * columns) % 2 == 0 else x + gap + 0.05
                build.box((side - 0.012, y0 - out - 0.03, centre - 0.1), (side + 0.012, y0 - out, centre + 0.1), handle)


def shelf(draw: Draw) -> Build:
    """An open bookcase: sides, boards, often a back, sometimes uprights and books."""
    build, main = Build(), colours.body(draw)
    width, depth, height = draw.uniform(0.5, 1.5), draw.uniform(0.25, 0.42), draw.uniform(0.7, 2.1)
    thick = draw.uniform(0.025, 0.045)
    x, y = width / 2, depth / 2
    for s in (-1, 1):
        inside, outside = sorted((s * (x - thick), s * x))
        build.box((inside, -y, 0), (outside, y, height), main)
    levels = np.linspace(draw.choice([0, 0.08]), height - thick, max(3, round(height / draw.uniform(0.28, 0.45)) + 1))
    for z in levels:
        build.box((-x, -y, z), (x, y, z + thick), main)
    if draw.random() < 0.6:
        build.box((-x, y - 0.02, 0), (x, y, height), colours.shade(main, draw.uniform(0.75, 1)))
    columns = int(draw.integers(1, 4)) if width > 0.8 else 1
    for at in np.linspace(-x, x, columns + 1)[1:-1]:
        build.box((at - thick / 2, -y, 0), (at + thick / 2, y, height), main)
    if draw.random() < 0.5:
        for z, above in pairwise(levels):
            _books(build, draw, (-x + thick, -y, z + thick), (x - thick, y, above))
    return build


def _books(build: Build, draw: Draw, low: Point, high: Point) -> None:
    """A row of books that fills a part of a compartment from the left."""
    (x, y0, z0), (x1, y1, z1) = low, high
    end = x + (x1 - x) * draw.uniform(0.2, 0.9)
    while x < end:
        width, height = draw.uniform(0.03, 0.09), (z1 - z0) * draw.uniform(0.6, 0.95)
        if x + width > x1:
            return
        build.box(
            (x, y0 + (y1 - y0) * draw.uniform(0.05, 0.3), z0),
            (x + width * 0.96, y1 - 0.03, z0 + height),
            colours.paint(draw),
        )
        x += width


def cupboard(draw: Draw) -> Build:
    """A wardrobe or a cupboard with doors, sometimes drawers below, on a plinth."""
    build, main = Build(), colours.body(draw)
    width, depth, height = draw.uniform(0.6, 1.8), draw.uniform(0.4, 0.62), draw.uniform(1.3, 2.2)
    x, y, lift = width / 2, depth / 2, draw.uniform(0.04, 0.12)
    build.box((-x + 0.03, -y + 0.03, 0), (x - 0.03, y - 0.02, lift), colours.shade(main, 0.7))
    split = lift + (height - lift) * draw.uniform(0.2, 0.4)
    if draw.random() < 0.35:
        fronts(build, draw, (-x, -y, lift), (x, y, split), main, drawers=True)
    else:
        split = lift
    fronts(build, draw, (-x, -y, split), (x, y, height), main, drawers=False)
    if draw.random() < 0.4:
        build.box((-x - 0.03, -y - 0.03, height), (x + 0.03, y + 0.01, height + draw.uniform(0.02, 0.06)), main)
    return build


def chest(draw: Draw) -> Build:
    """A chest of drawers or a sideboard, on short or long legs."""
    build, main = Build(), colours.body(draw)
    size, height = (draw.uniform(0.6, 1.8), draw.uniform(0.38, 0.52)), draw.uniform(0.55, 1.2)
    lift = draw.choice([0.04, draw.uniform(0.1, 0.25)])
    x, y = size[0] / 2, size[1] / 2
    middle = draw.uniform(-0.2, 0.2) * size[0] if size[0] > 1.1 else x
    fronts(build, draw, (-x, -y, lift), (middle, y, height), main, drawers=bool(draw.random() < 0.7))
    if middle < x:
        fronts(build, draw, (middle, -y, lift), (x, y, height), main, drawers=bool(draw.random() < 0.5))
    if draw.random() < 0.5:
        build.box((-x - 0.02, -y - 0.02, height), (x + 0.02, y, height + 0.03), main)
    four_legs(build, draw, size, lift, colours.legs(draw, main))
    return build
