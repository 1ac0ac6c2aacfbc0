"""Beds, lamps, mugs, vases, bins, coat stands. Each function draws its parameters and builds the piece."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from itertools import pairwise

import numpy as np

from fewstep_shapes3d.furniture import colours
from fewstep_shapes3d.furniture.seating import Draw, four_legs, pedestal
from fewstep_shapes3d.furniture.solids import Build


def bed(draw: Draw) -> Build:
    """A frame with a headboard, a mattress, a blanket and pillows; the foot end is towards -y."""
    build, frame = Build(), colours.body(draw)
    double = draw.random() < 0.5
    width, length = draw.uniform(1.4, 1.9) if double else draw.uniform(0.85, 1.1), draw.uniform(1.9, 2.1)
    x, y, lift, level = width / 2, length / 2, draw.uniform(0.1, 0.25), draw.uniform(0.28, 0.4)
    build.box((-x - 0.03, -y - 0.03, lift), (x + 0.03, y, level), frame)
    four_legs(build, draw, (width, length), lift, frame)
    high = level + draw.uniform(0.3, 0.8)
    if draw.random() < 0.5:
        build.box((-x - 0.03, y, 0), (x + 0.03, y + 0.05, high), frame)
    else:
        build.cushion((-x - 0.03, y - 0.02, lift), (x + 0.03, y + 0.1, high), colours.fabric(draw), 0.3)
    if draw.random() < 0.3:
        build.box((-x - 0.03, -y - 0.07, 0), (x + 0.03, -y - 0.03, level + draw.uniform(0.1, 0.35)), frame)
    soft, sheet = draw.uniform(0.14, 0.26), colours.paint(draw) if draw.random() < 0.3 else (0.93, 0.93, 0.9)
    top = level + soft
    build.cushion((-x, -y, level - 0.02), (x, y - 0.01, top), sheet, 0.3)
    cover, reach = colours.fabric(draw), y - draw.uniform(0.35, 1.1)
    build.cushion((-x - 0.02, -y - 0.02, level + soft * 0.3), (x + 0.02, reach, top + 0.035), cover, 0.3)
    count = int(draw.integers(1, 3)) if double else 1
    for at in np.arange(count) - (count - 1) / 2:
        centre, half = at * width / count, min(0.35, width / count * 0.42)
        build.cushion(
            (centre - half, y - 0.45, top - 0.02),
            (centre + half, y - 0.06, top + 0.12),
            colours.shade(sheet, 0.98),
            0.5,
        )
    return build


def lamp(draw: Draw) -> Build:
    """A floor or a table lamp: foot, stem, and a conical or spherical shade."""
    build, frame = Build(), colours.metal(draw) if draw.random() < 0.6 else colours.wood(draw)
    tall = draw.random() < 0.5
    height, foot = (
        (draw.uniform(1.2, 1.7), draw.uniform(0.12, 0.18))
        if tall
        else (draw.uniform(0.3, 0.6), draw.uniform(0.07, 0.12))
    )
    width = draw.uniform(0.2, 0.34) if tall else draw.uniform(0.13, 0.24)
    lift, cover = draw.uniform(0.6, 1.3) * width, colours.fabric(draw)
    bottom = height - lift
    if not tall and draw.random() < 0.5:
        belly = foot * draw.uniform(0.9, 1.5)
        profile = [
            (foot, 0),
            (foot, 0.02),
            (belly, bottom * 0.35),
            (belly * 0.7, bottom * 0.7),
            (0.015, bottom * 0.9),
            (0.015, bottom + 0.02),
        ]
        build.lathe((0, 0, 0), profile, colours.paint(draw))
    elif tall and draw.random() < 0.35:
        for at in range(3):
            way = np.array([np.cos(at * 2.0944 + 0.5), np.sin(at * 2.0944 + 0.5)])
            build.bar((*way * foot * 2, 0), (*way * 0.02, bottom + 0.02), (0.03, 0.04), frame, round_=True)
    else:
        build.lathe((0, 0, 0), [(foot, 0), (foot, 0.02), (0.02, 0.04)], frame)
        build.bar((0, 0, 0.03), (0, 0, bottom + lift / 2), (0.035 if tall else 0.025,), frame, round_=True)
    if draw.random() < 0.25:
        angles = np.linspace(0.05, np.pi - 0.05, 12)
        build.lathe(
            (0, 0, bottom + lift / 2), [(np.sin(a) * width * 0.8, -np.cos(a) * lift / 2) for a in angles], cover
        )
    else:
        upper = width * draw.uniform(0.45, 1.0)
        build.lathe((0, 0, bottom), [(width, 0), (upper, lift)], cover)
    return build


def vessel(build: Build, draw: Draw, outline: list[tuple[float, float]], wall: float, colour: colours.RGB) -> None:
    """An open vessel: the outline up the outside, then down the inside at a distance of ``wall``."""
    inside = [(max(radius - wall, 0.01), height) for radius, height in reversed(outline)]
    inside[-1] = (inside[-1][0], outline[0][1] + wall)
    build.lathe((0, 0, 0), outline + inside, colour)


def mug(draw: Draw) -> Build:
    """A cup with a handle."""
    build, colour = Build(), colours.paint(draw)
    radius, height = draw.uniform(0.035, 0.05), draw.uniform(0.07, 0.12)
    waist = draw.uniform(0.75, 1.05)
    vessel(
        build,
        draw,
        [(radius * waist, 0), (radius, height * 0.5), (radius * draw.uniform(0.95, 1.1), height)],
        0.006,
        colour,
    )
    side, reach = draw.choice([-1, 1]), draw.uniform(0.55, 0.8) * radius
    top, bottom, width = height * draw.uniform(0.75, 0.88), height * draw.uniform(0.2, 0.35), draw.uniform(0.009, 0.013)
    angles = np.linspace(np.pi / 2, -np.pi / 2, 9)
    points = [
        (side * (radius * 0.9 + reach * np.cos(a)), 0, (top + bottom) / 2 + (top - bottom) / 2 * np.sin(a))
        for a in angles
    ]
    for start, end in pairwise(points):
        build.tube(start, end, width, colour)
    return build


def vase(draw: Draw) -> Build:
    """A vase with a smooth outline, sometimes with a plant."""
    build, colour = Build(), colours.paint(draw)
    height, base = draw.uniform(0.2, 0.45), draw.uniform(0.05, 0.1)
    knots = [base, base * draw.uniform(1, 2), base * draw.uniform(0.8, 1.8), base * draw.uniform(0.5, 1.3)]
    heights = np.linspace(0, 1, 12)
    outline = [(float(np.interp(h, [0, 0.35, 0.7, 1], knots)), float(h * height)) for h in heights]
    smooth = [
        outline[0],
        *((float(np.mean([outline[i + d][0] for d in (-1, 0, 1)])), outline[i][1]) for i in range(1, 11)),
        outline[-1],
    ]
    vessel(build, draw, smooth, 0.015, colour)
    if draw.random() < 0.5:
        green = hsv_to_rgb(draw.uniform(0.2, 0.4), draw.uniform(0.4, 0.8), draw.uniform(0.25, 0.6))
        for _ in range(int(draw.integers(5, 14))):
            angle, reach, rise = draw.uniform(0, 2 * np.pi), draw.uniform(0.03, 0.16), draw.uniform(0.08, 0.3)
            tip = np.array([np.cos(angle) * reach, np.sin(angle) * reach, height + rise])
            build.tube((0, 0, height * 0.6), tip, 0.012, green)
            build.cushion(tip - 0.03, tip + 0.03, colours.shade(green, draw.uniform(0.8, 1.2)), 0.5)
    return build


def bin_(draw: Draw) -> Build:
    """A waste bin, round or square, open or with a lid."""
    build, colour = Build(), colours.paint(draw) if draw.random() < 0.6 else colours.metal(draw)
    height, radius = draw.uniform(0.25, 0.7), draw.uniform(0.11, 0.2)
    foot, sides = radius * draw.uniform(0.7, 1), 4 if draw.random() < 0.35 else 32
    outline = [(foot, 0), (radius, height)]
    if draw.random() < 0.5:
        inside = [(radius - 0.012, height), (foot - 0.012, 0.02)]
        build.lathe((0, 0, 0), outline + inside, colour, sides)
    else:
        build.lathe((0, 0, 0), outline, colour, sides)
        lid = height * draw.uniform(0.05, 0.3)
        build.lathe(
            (0, 0, height),
            [(radius * 1.04, 0), (radius * 1.04, 0.02), (radius * 0.6, lid), (0.01, lid * 1.1)],
            colours.shade(colour, draw.uniform(0.5, 1.1)),
            sides,
        )
    return build


def coat_stand(draw: Draw) -> Build:
    """A coat stand: a column with hooks on a foot."""
    build, frame = Build(), colours.legs(draw, colours.wood(draw))
    height = draw.uniform(1.5, 1.9)
    pedestal(build, draw, draw.uniform(0.2, 0.3), height, frame)
    for level in height - np.array([0.06, 0.3])[: int(draw.integers(1, 3))]:
        turn = draw.uniform(0, np.pi)
        for at in range(4):
            angle = turn + at * np.pi / 2
            way = np.array([np.cos(angle), np.sin(angle)])
            build.tube((0, 0, level - 0.06), (*way * draw.uniform(0.12, 0.16), level + 0.04), 0.03, frame)
    return build
