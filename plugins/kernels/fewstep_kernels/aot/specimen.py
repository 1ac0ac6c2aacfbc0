"""A kernel with everything fixed that compiling it needs: what the gate compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep_kernels.tuning import Tile


@dataclass(frozen=True)
class Specimen:
    """One shipped tile of one kernel.

    Args:
        name: unique, for example ``"attention-forward/fp16/64/BM128-BN64-w4-s3"``.
        kernel: the ``@triton.jit`` function (imported without TRITON_INTERPRET).
        signature: Triton type by argument name, without the constexprs: ``{"q": "*fp16", "stride": "i32"}``.
        constants: constexprs by name, those of the tile excluded.
        tile: sizes, warps and stages.
        aligned: arguments that are multiples of 16 (addresses, strides).
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
    """A kernel on indices alone, which has one size and no matrix products; arguments without a type are int32.

    Args:
        name: as of a specimen.
        kernel: the ``@triton.jit`` function.
        pointers: Triton type by argument name.
        constants: all constexprs.
    """
    signature = {n: pointers.get(n, "i32") for n in kernel.arg_names if n not in constants}
    needs = frozenset({"no-spill"})
    return Specimen(name, kernel, signature, constants, Tile({}, 4, 2), aligned=tuple(pointers), needs=needs)
