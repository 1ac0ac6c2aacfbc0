"""The norm kernels that the ahead-of-time gate compiles: every tile, at the widths of TRELLIS and of the small models.

No matrix instructions are expected: these kernels are memory-bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fewstep_kernels.aot.specimen import Specimen
from fewstep_kernels.norms import gate_jit, heads_jit, modulation_jit
from fewstep_kernels.norms.gate import COLUMNS
from fewstep_kernels.norms.tiles import block, tiles
from fewstep_kernels.tuning import Tile

TYPES = ("fp16", "bf16", "fp32")
ROW_WIDTHS = {1024: TYPES, 96: ("fp16",), 2048: ("fp16",)}
HEAD_WIDTHS = {64: TYPES, 24: ("fp16",), 32: ("fp16",), 128: ("fp16",)}
GAMMAS = ("q_gamma", "k_gamma", "tq_gamma", "tk_gamma", "partial")
STRIDES = ("_stride", "_batch", "_along", "_across")
TANGENTS = {
    "modulated-norm": ("tx", "tshift", "tscale", "ty"),
    "gated-residual": ("tx", "tgate", "ty", "tout"),
    "qk-rms-norm": ("tq", "tk", "tq_gamma", "tk_gamma", "tyq", "tyk"),
}
MODULES = {"modulated-norm": modulation_jit, "gated-residual": gate_jit, "qk-rms-norm": heads_jit}


def _type(name: str, element: str) -> str:
    """Triton's type of an argument: gains and sums are float32, sizes and strides 32-bit."""
    if name in ("index", "bounds"):
        return "*i64"
    if name in GAMMAS:
        return "*fp32"
    if name in ("eps", "root"):
        return "fp32"
    sizes = ("heads", *gate_jit.SIZES, *heads_jit.SIZES)
    return "i32" if name in sizes or name.endswith(STRIDES) else f"*{element}"


def _specimen(name: str, kernel: Any, element: str, absent: Sequence[str], width: int, tile: Tile) -> Specimen:
    """A specimen of a tile, without the pointers ``absent``, in the usual case of contiguous samples."""
    size = min(COLUMNS, block(width)) if kernel is gate_jit.forward_kernel or kernel is gate_jit.backward_kernel else 0
    given: dict[str, Any] = {n: None for n in kernel.arg_names if n in absent or n.endswith("_batch")}
    given |= {n: size or block(width) for n in ("BLOCK_C", "BLOCK_D") if n in kernel.arg_names} | {"WIDTH": width}
    fixed = {*given, *tile.sizes}
    signature = {n: _type(n, element) for n in kernel.arg_names if n not in fixed}
    words = "-".join(str(size) for size in tile.sizes.values())
    return Specimen(
        name=f"{name}/{element}/{width}/{words}-w{tile.warps}-s{tile.stages}",
        kernel=kernel,
        signature=signature,
        constants=given,
        tile=tile,
        # Strides of tokens and rows are multiples of 16; that of heads is the width itself.
        aligned=tuple(
            n
            for n, t in signature.items()
            if t[0] == "*" or (n.endswith(STRIDES) and ("across" not in n or width % 16 == 0))
        ),
        needs=frozenset({"no-spill"}),
    )


def _family(op: str, widths: dict[int, Sequence[str]], size: str) -> Iterator[Specimen]:
    module, tangents = MODULES[op], TANGENTS[op]
    tables = ("cos", "sin") if op == "qk-rms-norm" else ()
    variants = (
        (f"{op}-forward", module.forward_kernel, (*tables, *tangents)),
        (f"{op}-tangent", module.forward_kernel, tables),
        (f"{op}-backward", module.backward_kernel, tables),
    )
    for width, types in widths.items():
        columns = min(COLUMNS, block(width)) if op == "gated-residual" else block(width)
        for name, kernel, absent in variants:
            for element in types:
                for tile in tiles(size, columns, backward=name.endswith("backward")):
                    yield _specimen(name, kernel, element, absent, width, tile)


def specimens() -> list[Specimen]:
    """All specimens; rotary embedding only at TRELLIS's head width."""
    rows = [s for op in ("modulated-norm", "gated-residual") for s in _family(op, dict(ROW_WIDTHS), "BLOCK_R")]
    heads = list(_family("qk-rms-norm", dict(HEAD_WIDTHS), "BLOCK_T"))
    for name, kernel in (("tangent", heads_jit.forward_kernel), ("backward", heads_jit.backward_kernel)):
        for tile in tiles("BLOCK_T", block(64), backward=name == "backward"):
            heads.append(_specimen(f"qk-rms-norm-rotary-{name}", kernel, "fp16", (), 64, tile))
    return [*rows, *heads]
