"""Starting noise of voxels as a function of their coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.core.layout import Layout, Packed
from fewstep.errors import invalid

_BITS, _HALF = 20, 1 << 19  # bits of a coordinate, and an offset, since it may be negative
_ODD = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB)  # SplitMix64's, as signed numbers


def voxel_noise(seed: int, layout: Layout, like: Tensor) -> Tensor:
    """Standard normal noise [T, C] that is a function of (seed, sample, coordinates, channel) alone.

    Two structures of one object get the same noise where they have the same voxels. The generator is counter-based: the
    finaliser of SplitMix64 (Steele et al. 2014), then the Box-Muller transform.

    Raises:
        FewstepError: for a layout without coordinates.
    """
    if not isinstance(layout, Packed) or layout.coords is None:
        raise invalid("layout", type(layout).__name__, "Packed, with coords")
    place = layout.index.long()
    for axis in layout.coords.long().unbind(1):
        place = _mixed(place) + ((axis + _HALF) & ((1 << _BITS) - 1))
    channels = torch.arange(2 * like.shape[1], device=place.device).reshape(2, 1, -1)
    bits = _mixed(_mixed(_mixed(place) + seed)[:, None] + channels)  # [2, T, C]
    first, second = _uniform(bits)
    normal: Tensor = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
    return normal.to(like.device, like.dtype)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64: a bijection of 64-bit integers that scrambles their bits. Products wrap around."""
    x = x + _ODD[2]
    x = (x ^ _shifted(x, 30)) * _ODD[0]
    x = (x ^ _shifted(x, 27)) * _ODD[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own is arithmetic and keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _uniform(bits: Tensor) -> Tensor:
    """Float64 in (0, 1) of 52 bits."""
    return (_shifted(bits, 12).double() + 0.5) / (1 << 52)
