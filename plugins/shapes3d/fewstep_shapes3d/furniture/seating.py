"""Chairs, armchairs, office chairs, stools, benches, sofas. Each function draws its parameters and builds the piece."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from fewstep_shapes3d.furniture import colours
from fewstep_shapes3d.furniture.solids import Build

Draw = np.random.Generator


def four_legs(build: Build, draw: Draw, size: tuple[float, float], top: float, colour: colours.RGB) -> float:
    """Four straight, tapered or splayed legs under a rectangle ``size`` centred at 0, at height ``top``, sometimes with
    stretchers. Returns their width at the top."""
    width = draw.uniform(0.035, 0.07)
    taper, splay = draw.choice([1.0, draw.uniform(0.5, 0.8)]), draw.choice([0.0, draw.uniform(0.01, 0.07)])
    round_ = bool(draw.random() < 0.4)
    inset = width / 2 + draw.uniform(0, 0.04)
    x, y = size[0] / 2 - inset, size[1] / 2 - inset
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        foot = (sx * (x + splay), sy * (y + splay), 0.0)
        build.bar(foot, (sx * x, sy * y, top), (width * taper, width), colour, round_=round_)
    if draw.random() < 0.4:
        height, rod = top * draw.uniform(0.25, 0.6), width * 0.6
        at = splay * (1 - height / top)
        for s in (-1, 1):
            build.tube((s * (x + at), -y - at, height), (s * (x + at), y + at, height), rod, colour)
        build.tube((-x - at, 0, height), (x + at, 0, height), rod, colour)
    return width


def pedestal(build: Build, draw: Draw, radius: float, top: float, colour: colours.RGB) -> None:
    """A column on a round plate or on a star of arms."""
    column = draw.uniform(0.04, 0.09)
    build.bar((0, 0, 0.02), (0, 0, top), (column,), colour, round_=True)
    if draw.random() < 0.5:
        build.lathe((0, 0, 0), [(radius, 0), (radius, 0.02), (column / 2, 0.05)], colour)
        return
    arms = int(draw.choice([4, 5]))
    for at in range(arms):
        angle = 2 * np.pi * at / arms + np.pi / 4
        build.tube((0, 0, 0.06), (np.cos(angle) * radius, np.sin(angle) * radius, 0.03), 0.045, colour)


def backrest(build: Build, draw: Draw, width: float, at: float, low: float, high: float, frame: colours.RGB) -> None:
    """A leaning back at y = ``at`` from height ``low`` to ``high``: a full or half panel, slats, rungs, a cushion."""
    first, post = len(build.solids), draw.uniform(0.03, 0.05)
    half, kind = width / 2, draw.choice(["panel", "slats", "rungs", "cushion", "half"])
    if kind in ("slats", "rungs", "half"):
        for s in (-1, 1):
            build.box((s * half - post / 2, at - post / 2, low), (s * half + post / 2, at + post / 2, high), frame)
    if kind == "panel":
        build.box((-half, at - 0.018, low + draw.uniform(0, 0.1)), (half, at + 0.018, high), frame)
    elif kind == "cushion":
        cover = colours.fabric(draw)
        build.cushion((-half, at - 0.045, low + 0.02), (half, at + 0.045, high), cover, draw.uniform(0.2, 0.5))
    elif kind == "half":
        middle = low + (high - low) * draw.uniform(0.35, 0.6)
        build.box((-half, at - 0.016, middle), (half, at + 0.016, high), frame)
    else:
        build.box((-half, at - post / 2, high - 0.07), (half, at + post / 2, high), frame)
        count = int(draw.integers(3, 7))
        if kind == "slats":
            for x in np.linspace(-half, half, count + 2)[1:-1]:
                build.box((x - 0.016, at - 0.014, low), (x + 0.016, at + 0.014, high - 0.05), frame)
        else:
            for z in np.linspace(low, high, min(count, 5) + 1)[1:-1]:
                build.box((-half, at - 0.014, z - 0.022), (half, at + 0.014, z + 0.022), frame)
    build.turn(first, -draw.uniform(0, 12), (0, at, low), axis=0)


def seat(build: Build, draw: Draw, size: tuple[float, float], top: float, frame: colours.RGB) -> float:
    """A plate, a cushion or both, with the upper side at ``top``; returns the height of the underside."""
    x, y = size[0] / 2, size[1] / 2
    thick = draw.uniform(0.03, 0.05)
    kind = draw.choice(["plate", "cushion", "both"], p=[0.4, 0.35, 0.25])
    if kind == "plate":
        build.box((-x, -y, top - thick), (x, y, top), frame)
        return top - thick
    soft = draw.uniform(0.05, 0.1)
    build.cushion((-x, -y, top - soft), (x, y, top), colours.fabric(draw), draw.uniform(0.2, 0.5))
    if kind == "cushion":
        return float(top - soft)
    build.box((-x, -y, top - soft - thick), (x, y, top - soft + 0.01), frame)
    return float(top - soft - thick)


def armrests(
    build: Build, draw: Draw, size: tuple[float, float], top: float, height: float, frame: colours.RGB
) -> None:
    """Two armrests above the sides of a seat, each on a post in front."""
    width = draw.uniform(0.035, 0.06)
    for s in (-1, 1):
        x, front = s * size[0] / 2, -size[1] / 2 + draw.uniform(0.02, 0.1)
        build.box((x - width / 2, front, top + height - 0.03), (x + width / 2, size[1] / 2, top + height), frame)
        build.bar((x, front + 0.03, top - 0.03), (x, front + 0.03, top + height), (0.035,), frame)


def chair(draw: Draw) -> Build:
    """A dining chair: four legs, a seat, a back, sometimes arms."""
    build, frame = Build(), colours.body(draw)
    size, top = (draw.uniform(0.38, 0.52), draw.uniform(0.38, 0.5)), draw.uniform(0.42, 0.5)
    under = seat(build, draw, size, top, frame)
    legs = colours.legs(draw, frame)
    four_legs(build, draw, size, under, legs)
    backrest(build, draw, size[0] * draw.uniform(0.8, 1), size[1] / 2 - 0.03, top, top + draw.uniform(0.3, 0.6), frame)
    if draw.random() < 0.25:
        armrests(build, draw, size, top, draw.uniform(0.18, 0.25), legs)
    return build


def office_chair(draw: Draw) -> Build:
    """A chair on a column with a star foot or a plate."""
    build, frame = Build(), colours.metal(draw)
    size, top = (draw.uniform(0.42, 0.54), draw.uniform(0.42, 0.52)), draw.uniform(0.44, 0.55)
    cover, soft = colours.fabric(draw), draw.uniform(0.06, 0.11)
    build.cushion((-size[0] / 2, -size[1] / 2, top - soft), (size[0] / 2, size[1] / 2, top), cover, 0.4)
    pedestal(build, draw, draw.uniform(0.26, 0.34), top - soft, frame)
    first, half, at = len(build.solids), size[0] / 2 * draw.uniform(0.75, 1), size[1] / 2
    low, high = top + draw.uniform(0.02, 0.15), top + draw.uniform(0.4, 0.7)
    build.box((-0.03, at - 0.01, top - 0.05), (0.03, at + 0.02, low + 0.15), frame)
    build.cushion((-half, at - 0.06, low), (half, at + 0.03, high), cover, 0.4)
    build.turn(first, -draw.uniform(2, 14), (0, at, top), axis=0)
    if draw.random() < 0.5:
        armrests(build, draw, size, top, draw.uniform(0.18, 0.24), frame)
    return build


def stool(draw: Draw) -> Build:
    """A low or a bar stool, round or square, on legs or a column."""
    build, frame, top = Build(), colours.body(draw), draw.uniform(0.4, 0.78)
    across = draw.uniform(0.3, 0.42)
    if draw.random() < 0.55:
        thick, cover = draw.uniform(0.03, 0.09), frame if draw.random() < 0.5 else colours.fabric(draw)
        build.lathe(
            (0, 0, top - thick), [(across / 2 * 0.94, 0), (across / 2, thick / 2), (across / 2 * 0.94, thick)], cover
        )
        under, inner = top - thick, across * 0.72
    else:
        under, inner = seat(build, draw, (across, across), top, frame), across
    if draw.random() < 0.3:
        pedestal(build, draw, across * 0.55, under, colours.metal(draw))
    else:
        four_legs(build, draw, (inner, inner), under, colours.legs(draw, frame))
    return build


def bench(draw: Draw) -> Build:
    """A long seat on legs or on two boards, with or without a back."""
    build, frame = Build(), colours.body(draw)
    size, top = (draw.uniform(0.9, 1.6), draw.uniform(0.32, 0.48)), draw.uniform(0.4, 0.48)
    under = seat(build, draw, size, top, frame)
    if draw.random() < 0.5:
        four_legs(build, draw, size, under, colours.legs(draw, frame))
    else:
        for s in (-1, 1):
            x, board = s * (size[0] / 2 - draw.uniform(0.05, 0.2)), draw.uniform(0.03, 0.06)
            build.box((x - board / 2, -size[1] / 2 + 0.02, 0), (x + board / 2, size[1] / 2 - 0.02, under), frame)
    if draw.random() < 0.5:
        backrest(build, draw, size[0] * 0.96, size[1] / 2 - 0.03, top, top + draw.uniform(0.3, 0.45), frame)
    return build


def sofa(draw: Draw, seats: tuple[int, int] = (2, 4)) -> Build:
    """An upholstered body with arms, seat cushions, back cushions and short feet."""
    build, cover = Build(), colours.fabric(draw)
    count = int(draw.integers(*seats))
    arm, depth, base = draw.uniform(0.1, 0.24), draw.uniform(0.75, 0.98), draw.uniform(0.05, 0.16)
    inner = count * draw.uniform(0.55, 0.75)
    half, back = inner / 2, draw.uniform(0.16, 0.26)
    level, top = draw.uniform(0.26, 0.32) + base * 0.5, draw.uniform(0.7, 0.95)
    soft = draw.uniform(0.1, 0.4)
    y = depth / 2
    build.cushion((-half - arm, -y, base), (half + arm, y, level), cover, 0.1)
    build.cushion((-half - arm, y - back, base), (half + arm, y, top), cover, soft)
    rest = level + draw.uniform(0.14, 0.3)
    if draw.random() < 0.85:
        for s in (-1, 1):
            inside, outside = sorted((s * half, s * (half + arm)))
            build.cushion((inside, -y, base), (outside, y - 0.02, rest), cover, soft)
    seat_cover = cover if draw.random() < 0.6 else colours.fabric(draw)
    thick, gap = draw.uniform(0.1, 0.18), 0.01
    edges = np.linspace(-half, half, count + 1)
    for low, high in pairwise(edges):
        front = (low + gap, -y - 0.01, level - 0.02)
        build.cushion(front, (high - gap, y - back + 0.02, level + thick), seat_cover, 0.35)
        build.cushion(
            (low + gap, y - back - 0.14, level + thick), (high - gap, y - back + 0.04, top + 0.02), seat_cover, 0.4
        )
    feet = colours.legs(draw, colours.wood(draw))
    for sx in (-1, 1):
        for sy in (-1, 1):
            foot = (sx * (half + arm - 0.06), sy * (y - 0.06))
            build.bar((*foot, 0), (*foot, base + 0.02), (0.045, 0.06), feet, round_=True)
    return build


def armchair(draw: Draw) -> Build:
    """A sofa for one."""
    return sofa(draw, (1, 2))
