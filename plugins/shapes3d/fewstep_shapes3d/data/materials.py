"""A mesh's colours as trimesh reads them: materials with textures, and colours of vertices and faces, all in sRGB.

In glTF the factors of a material and the colours of vertices are linear light, its textures are sRGB (Khronos, glTF 2.0
specification, 3.9.2 and 3.7.2.1). The other formats do not say; programs write sRGB into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NEUTRAL = np.array([0.7, 0.7, 0.7, 1.0])  # if a file has no colours


@dataclass
class Material:
    """``colour`` is RGBA in [0,1]; ``texture`` RGBA uint8 [H,W,4] (first row at v=1) replaces its RGB."""

    colour: Floats
    texture: npt.NDArray[np.uint8] | None = None


@dataclass
class Look:
    """The colours of one mesh: ``uv`` [V,2]; ``material`` [F] indexes ``materials``; ``tint`` [V,3], by which the
    materials' colours are multiplied, or None."""

    uv: Floats
    material: npt.NDArray[np.int64]
    materials: list[Material]
    tint: Floats | None = None


def look_of(part: Any, linear: bool) -> Look:
    """The colours of a ``trimesh.Trimesh``.

    Args:
        linear: the file is glTF, with colours of vertices in linear light.
    """
    visual, vertices, faces = part.visual, len(part.vertices), len(part.faces)
    uv = getattr(visual, "uv", None)
    plain = np.zeros((vertices, 2))
    if visual.kind == "texture":
        material = _textured(visual.material, has_uv=uv is not None)
        coordinates = plain if uv is None else np.asarray(uv, dtype=np.float64)[:, :2]
        shades = visual.vertex_attributes.get("color", part.vertex_attributes.get("color"))
        return Look(coordinates, np.zeros(faces, np.int64), [material], _rgb(shades, linear))
    if visual.kind == "face":
        colours, which = np.unique(visual.face_colors, axis=0, return_inverse=True)
        return Look(plain, which.reshape(-1), [Material(colour / 255) for colour in colours])
    tint = _rgb(visual.vertex_colors, linear) if visual.kind == "vertex" else None
    return Look(plain, np.zeros(faces, np.int64), [Material(NEUTRAL if tint is None else np.ones(4))], tint)


def srgb(light: Floats) -> Floats:
    """Linear light in [0, 1] to sRGB (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055)


def _rgb(colours: Any, linear: bool) -> Floats | None:
    if colours is None:
        return None
    found = np.asarray(colours)[:, :3]
    rgb: Floats = found / np.iinfo(found.dtype).max if found.dtype.kind in "iu" else found.astype(np.float64)
    rgb = np.nan_to_num(rgb).clip(0, 1)
    return srgb(rgb) if linear else rgb


def _textured(source: Any, has_uv: bool) -> Material:
    return _physical(source, has_uv) if hasattr(source, "baseColorTexture") else _simple(source, has_uv)


def _simple(source: Any, has_uv: bool) -> Material:
    """A material of an MTL file, or none."""
    colour = NEUTRAL.copy()
    diffuse = getattr(source, "diffuse", None)
    if diffuse is not None:
        colour[:3] = np.asarray(diffuse, dtype=np.float64)[:3] / 255
    opacity = (getattr(source, "kwargs", None) or {}).get("d")
    if opacity is not None:
        colour[3] = float(np.clip(float(np.ravel(np.asarray(opacity, dtype=object))[-1]), 0, 1))
    return Material(colour, _pixels(getattr(source, "image", None)) if has_uv else None)


def _physical(source: Any, has_uv: bool) -> Material:
    """A material of glTF: its base colour, by default white. Alpha is used only as ``alphaMode`` says."""
    colour = np.ones(4) if source.baseColorFactor is None else np.asarray(source.baseColorFactor) / 255
    colour = np.append(srgb(colour[:3]), colour[3])
    texture = _pixels(source.baseColorTexture) if has_uv else None
    alpha = colour[3:] if texture is None else texture[..., 3] / 255 * colour[3]
    if source.alphaMode == "MASK":
        alpha = (alpha >= (0.5 if source.alphaCutoff is None else source.alphaCutoff)).astype(np.float64)
    elif source.alphaMode != "BLEND":
        alpha = np.ones_like(alpha)
    if texture is None:
        return Material(np.append(colour[:3], alpha))
    tinted = np.concatenate([texture[..., :3] * colour[:3], alpha[..., None] * 255], -1)
    return Material(np.ones(4), np.rint(tinted).astype(np.uint8))


def _pixels(image: Any) -> npt.NDArray[np.uint8] | None:
    try:
        return None if image is None else np.asarray(image.convert("RGBA"))
    except (OSError, SyntaxError):  # a damaged texture costs the texture, not the object
        return None
