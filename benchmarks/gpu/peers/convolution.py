"""Sparse-convolution peers."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.peers.attention import off_gpu
from fewstep.core.layout import Packed
from fewstep.ops.table import Kernel

KEY, MODULE = "benchmark", "spconv_triton.pytorch"


class SpconvTriton:
    """``spconv-triton``: SubMConv3d with a cached or rebuilt neighbour map."""

    name = "spconv-triton"

    def available(self, x: Tensor) -> str | None:
        """None if it can be used; else why not."""
        if find_spec("spconv_triton") is None:
            return "no wheel of it"
        return off_gpu(x)

    def run(self, x: Tensor, weight: Tensor, layout: Packed, *, keep: bool = True) -> Tensor:
        """[T, Ci] and [Co, 3, 3, 3, Ci] to [T, Co], differentiable in both.

        Args:
            keep: reuse the neighbour map of an earlier call with this layout; otherwise it is rebuilt.
        """
        maps: dict[str, Any] = layout.once("spconv maps", dict)
        places = layout.once("spconv places", lambda: _places(layout))
        extent = layout.once("spconv extent", lambda: (places[:, 1:].amax(0) + 1).tolist())
        sparse = import_module(MODULE).SparseConvTensor(
            x, places, extent, layout.batch_size, indice_dict=dict(maps) if keep else {}
        )
        module = _module(weight.shape[-1], weight.shape[0], weight.shape[1], weight.device, weight.dtype)
        made = torch.func.functional_call(module, {"weight": weight}, (sparse,))
        maps.update(made.indice_dict)  # spconv works on a copy of the given dict
        out: Tensor = made.features
        return out


def _places(layout: Packed) -> Tensor:
    """[T, 4] int32 (sample, x, y, z), with coordinates from 0."""
    assert layout.coords is not None
    coords = layout.coords - layout.coords.amin(0)
    return torch.cat([layout.index[:, None], coords], 1).int().contiguous()


@lru_cache(maxsize=32)
def _module(inner: int, outer: int, size: int, device: torch.device, dtype: torch.dtype) -> Any:
    return (
        import_module(MODULE).SubMConv3d(inner, outer, size, bias=False, indice_key=f"{KEY} {size}").to(device, dtype)
    )


SPCONV = SpconvTriton()


def as_kernel(enabled: Any) -> Kernel:
    """The peer as an entry of the op table, for the eager baseline of a whole model.

    Args:
        enabled: a function that says whether the baseline is running; elsewhere the entry refuses.
    """

    def check(x: Tensor, weight: Tensor, layout: Packed) -> str | None:
        if not enabled():
            return "a peer, for the baseline of the benchmark only"
        return "kernel sizes other than 3" if weight.shape[1] != 3 else SPCONV.available(x)

    backward = frozenset({"forward", "backward"})
    return Kernel(SPCONV.name, "submanifold_conv", SPCONV.run, backward, priority=15, backend="torch", check=check)
