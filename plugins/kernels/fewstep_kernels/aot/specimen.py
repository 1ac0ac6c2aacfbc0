"""Specimens: kernels with everything fixed that compilation needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep_kernels.tuning import Tile


@dataclass(frozen=True)
class Specimen:
    """One shipped tile of one kernel, as the gate compiles it.

    Args:
        name: unique, for example ``"attention-forward/fp16/64/128-64-w4-s3"``.
        kernel: the ``@triton.jit`` function (imported without TRITON_INTERPRET).
        signature: Triton type by argument name, without the constexprs: ``{"q": "*fp16", "stride": "i32"}``.
        constants: constexprs by name, those of the tile excluded.
        tile: sizes, warps and stages.
        aligned: arguments that are multiples of 16 (pointers, strides).
        needs: what must hold: "matrix" (tensor-core instructions), "no-spill".
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    tile: Tile
    aligned: tuple[str, ...] = ()
    needs: frozenset[str] = field(default=frozenset({"matrix", "no-spill"}))


def of_indices(name: str, kernel: Any, pointers: Mapping[str, str], constants: Mapping[str, Any]) -> Specimen:
    """A specimen of a kernel on indices, with a single size and no matrix products; arguments are int32 by default.

    Args:
        name: as in ``Specimen``.
        kernel: the ``@triton.jit`` function.
        pointers: Triton types of the pointers, by argument name.
        constants: all constexprs.
    """
    signature = {n: pointers.get(n, "i32") for n in kernel.arg_names if n not in constants}
    needs = frozenset({"no-spill"})
    return Specimen(name, kernel, signature, constants, Tile({}, 4, 2), aligned=tuple(pointers), needs=needs)
