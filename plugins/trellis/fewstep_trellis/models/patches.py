"""Dense grids to tokens and back."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """``[B, C, R, R, R]`` to tokens ``[B, (R/p)^3, C p^3]``: patches in C order, channels (C, px, py, pz)."""
    batch, channels, size = x.shape[:3]
    grid = size // patch
    x = x.reshape(batch, channels, grid, patch, grid, patch, grid, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, grid**3, channels * patch**3)


def unpatchify(h: Tensor, patch: int, grid: int) -> Tensor:
    """Tokens ``[B, G^3, C p^3]`` to ``[B, C, R, R, R]`` with R = G p; the inverse of :func:`patchify`."""
    batch, channels = h.shape[0], h.shape[2] // patch**3
    h = h.reshape(batch, grid, grid, grid, channels, patch, patch, patch)
    return h.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, channels, *[grid * patch] * 3)
