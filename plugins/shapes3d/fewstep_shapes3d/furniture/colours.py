"""Colours of furniture: wood, metal, paint and fabric as RGB in [0,1], each with a little variation."""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import TypeAlias

import numpy as np

RGB: TypeAlias = tuple[float, float, float]
WOODS = ((0.87, 0.72, 0.53), (0.76, 0.57, 0.36), (0.60, 0.40, 0.22), (0.42, 0.26, 0.15), (0.25, 0.16, 0.10))
METALS = ((0.78, 0.79, 0.81), (0.55, 0.56, 0.58), (0.16, 0.16, 0.17), (0.80, 0.66, 0.36))


def wood(draw: np.random.Generator) -> RGB:
    """From birch to wenge."""
    return _near(draw, WOODS[draw.integers(len(WOODS))], 0.04)


def metal(draw: np.random.Generator) -> RGB:
    """Chrome, steel, black iron or brass."""
    return _near(draw, METALS[draw.integers(len(METALS))], 0.02)


def paint(draw: np.random.Generator) -> RGB:
    """White, grey, black, or any hue as saturated as lacquer and plastic."""
    if draw.random() < 0.35:
        return _near(draw, (v := float(draw.choice([0.95, 0.85, 0.6, 0.3, 0.1])), v, v), 0.02)
    return hsv_to_rgb(draw.random(), draw.uniform(0.45, 0.95), draw.uniform(0.45, 0.95))


def fabric(draw: np.random.Generator) -> RGB:
    """Any hue, mostly muted."""
    return hsv_to_rgb(draw.random(), draw.uniform(0.05, 0.75), draw.uniform(0.2, 0.9))


def body(draw: np.random.Generator) -> RGB:
    """Colour of carcasses and table tops: mostly wood, or painted."""
    return wood(draw) if draw.random() < 0.65 else paint(draw)


def legs(draw: np.random.Generator, of: RGB) -> RGB:
    """Colour of legs: that of the rest, wood, or metal."""
    return (of, wood(draw), metal(draw))[draw.choice(3, p=[0.45, 0.2, 0.35])]


def shade(colour: RGB, factor: float) -> RGB:
    """The same colour, darker (below 1) or lighter."""
    r, g, b = (min(1.0, part * factor) for part in colour)
    return r, g, b


def _near(draw: np.random.Generator, colour: RGB, spread: float) -> RGB:
    r, g, b = np.clip(np.asarray(colour) * (1 + draw.normal(0, spread)) + draw.normal(0, spread / 3, 3), 0, 1)
    return float(r), float(g), float(b)
