"""Tables, round tables, desks, night stands. Each function draws its parameters and builds the piece."""

from __future__ import annotations

import numpy as np

from fewstep_shapes3d.furniture import colours
from fewstep_shapes3d.furniture.seating import Draw, four_legs, pedestal
from fewstep_shapes3d.furniture.solids import Build
from fewstep_shapes3d.furniture.storage import fronts


def table(draw: Draw) -> Build:
    """A dining or a coffee table: a rectangular top on four legs, boards or a frame, sometimes with a lower shelf."""
    build, top_colour = Build(), colours.body(draw)
    low = draw.random() < 0.4
    height = draw.uniform(0.3, 0.48) if low else draw.uniform(0.7, 0.78)
    size = (
        (draw.uniform(0.6, 1.3), draw.uniform(0.45, 0.75)) if low else (draw.uniform(0.8, 1.8), draw.uniform(0.7, 0.95))
    )
    thick = draw.uniform(0.025, 0.06)
    x, y, under = size[0] / 2, size[1] / 2, height - thick
    if draw.random() < 0.25:
        build.cushion((-x, -y, under), (x, y, height), top_colour, 0.5)
    else:
        build.box((-x, -y, under), (x, y, height), top_colour)
    frame = colours.legs(draw, top_colour)
    style = draw.choice(["legs", "boards", "loops"], p=[0.65, 0.2, 0.15])
    if style == "legs":
        four_legs(build, draw, size, under, frame)
        if draw.random() < 0.4:
            apron = draw.uniform(0.05, 0.1)
            build.box((-x + 0.05, -y + 0.05, under - apron), (x - 0.05, y - 0.05, under), frame)
    else:
        inset, board = draw.uniform(0.02, 0.2) * size[0], draw.uniform(0.03, 0.06)
        for s in (-1, 1):
            a, b = s * (x - inset) - board / 2, s * (x - inset) + board / 2
            if style == "boards":
                build.box((a, -y + 0.04, 0), (b, y - 0.04, under), frame)
            else:
                build.box((a, -y + 0.02, 0), (b, y - 0.02, board), frame)
                for t in (-1, 1):
                    edge = t * (y - 0.02 - board / 2)
                    build.box((a, edge - board / 2, 0), (b, edge + board / 2, under), frame)
    if draw.random() < 0.3:
        shelf = under * draw.uniform(0.25, 0.45)
        build.box((-x + 0.06, -y + 0.06, shelf), (x - 0.06, y - 0.06, shelf + 0.025), top_colour)
    return build


def round_table(draw: Draw) -> Build:
    """A round top on a column or on three or four legs."""
    build, top_colour = Build(), colours.body(draw)
    low = draw.random() < 0.4
    height, radius = (
        (draw.uniform(0.35, 0.55), draw.uniform(0.22, 0.45))
        if low
        else (draw.uniform(0.7, 1.05), draw.uniform(0.3, 0.6))
    )
    thick = draw.uniform(0.025, 0.05)
    build.lathe((0, 0, height - thick), [(radius, 0), (radius, thick)], top_colour)
    frame = colours.legs(draw, top_colour)
    if draw.random() < 0.5:
        pedestal(build, draw, radius * draw.uniform(0.55, 0.8), height - thick, frame)
        return build
    count, width = int(draw.integers(3, 5)), draw.uniform(0.035, 0.06)
    inner, outer = radius * draw.uniform(0.4, 0.85), radius * draw.uniform(0.7, 0.95)
    for at in range(count):
        angle = 2 * np.pi * at / count + np.pi / 4
        way = np.array([np.cos(angle), np.sin(angle)])
        build.bar((*way * outer, 0), (*way * inner, height - thick), (width * 0.7, width), frame, round_=True)
    return build


def desk(draw: Draw) -> Build:
    """A top with drawers below its left or right side, both or neither, and legs elsewhere."""
    build, main = Build(), colours.body(draw)
    width, depth, height = draw.uniform(1.0, 1.7), draw.uniform(0.5, 0.75), draw.uniform(0.7, 0.78)
    x, y, thick = width / 2, depth / 2, draw.uniform(0.025, 0.045)
    build.box((-x, -y, height - thick), (x, y, height), main)
    other, frame = colours.body(draw) if draw.random() < 0.4 else main, colours.legs(draw, main)
    pack = draw.uniform(0.32, 0.45)
    sides = {"left": (-1,), "right": (1,), "both": (-1, 1), "none": ()}[
        str(draw.choice(["left", "right", "both", "none"]))
    ]
    for s in (-1, 1):
        if s in sides:
            low, high = sorted((s * (x - 0.02), s * (x - 0.02 - pack)))
            lift = draw.choice([0.0, draw.uniform(0.05, 0.3)])
            fronts(build, draw, (low, -y + 0.02, lift), (high, y - 0.02, height - thick), other, drawers=True)
            if lift:
                for tx in (low + 0.03, high - 0.03):
                    for ty in (-y + 0.05, y - 0.05):
                        build.bar((tx, ty, 0), (tx, ty, lift), (0.035,), frame)
        else:
            for ty in (-y + 0.04, y - 0.04):
                build.bar((s * (x - 0.04), ty, 0), (s * (x - 0.04), ty, height - thick), (0.045,), frame)
    if draw.random() < 0.5:
        build.box((-x + 0.05, y - 0.05, height * 0.45), (x - 0.05, y - 0.03, height - thick), main)
    return build


def night_stand(draw: Draw) -> Build:
    """A small cabinet with drawers, on legs."""
    build, main = Build(), colours.body(draw)
    size, height = (draw.uniform(0.35, 0.55), draw.uniform(0.32, 0.45)), draw.uniform(0.42, 0.65)
    lift = height * draw.choice([0.06, draw.uniform(0.2, 0.5)])
    x, y = size[0] / 2, size[1] / 2
    fronts(build, draw, (-x, -y, lift), (x, y, height), main, drawers=True)
    if draw.random() < 0.5:
        build.box((-x - 0.015, -y - 0.015, height), (x + 0.015, y + 0.015, height + 0.025), main)
    four_legs(build, draw, size, lift, colours.legs(draw, main))
    return build
