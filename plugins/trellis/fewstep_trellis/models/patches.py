"""Dense grids to tokens and back."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """``[B, C, R, R, R]`` to tokens ``[B, (R/p)^3, C p^3]``: patches in C order, channels (C, px, py, pz)."""
    return rearrange(x, "b c (x px) (y py) (z pz) -> b (x y z) (c px py pz)", px=patch, py=patch, pz=patch)


def unpatchify(h: Tensor, patch: int, grid: int) -> Tensor:
    """Tokens ``[..., G^3, C p^3]`` to ``[..., C, R, R, R]`` with R = G p; the inverse of :func:`patchify`."""
    sizes = {"x": grid, "y": grid, "z": grid, "px": patch, "py": patch, "pz": patch}
    return rearrange(h, "... (x y z) (c px py pz) -> ... c (x px) (y py) (z pz)", **sizes)
