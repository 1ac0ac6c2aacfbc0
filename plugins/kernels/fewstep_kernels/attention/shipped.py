"""The attention kernels that the ahead-of-time gate compiles: every tile of ``tiles.py``, at all its head widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fewstep_kernels.aot.specimen import Specimen, of_indices
from fewstep_kernels.attention import backward_jit, forward_jit, windows_jit
from fewstep_kernels.attention.tiles import DELTA, KINDS, candidates, variant
from fewstep_kernels.cells import BLOCK
from fewstep_kernels.tuning import Tile

KERNELS = {
    "forward": forward_jit.forward_kernel,
    "tangent": forward_jit.tangent_kernel,
    "keys": backward_jit.keys_kernel,
    "keys-atomic": backward_jit.keys_kernel,
    "queries": backward_jit.queries_kernel,
}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
FLOAT32 = ("lse", "delta")
INT32 = ("tiles", "q_bounds", "k_bounds", "order")
UNALIGNED = ("count", "scale", "scale2", "lse_stride")
NO_SPILL = ("forward", "tangent")


def _signature(kind: str, names: list[str], element: str) -> dict[str, str]:
    """Triton types by argument name."""
    given = {**dict.fromkeys(FLOAT32, "*fp32"), **dict.fromkeys(INT32, "*i32"), "count": "i32"}
    given |= {"scale": "fp32", "scale2": "fp32"}
    if kind == "keys-atomic":
        given["dq"] = "*fp32"
    strides = {name for name in names if name.endswith(("_stride", "_head"))}
    return {name: given.get(name, "i32" if name in strides else f"*{element}") for name in names if not name.isupper()}


def _widths(head: int) -> dict[str, Any]:
    return {"HEAD": head, "WIDTH": 1 << (head - 1).bit_length()}


def _constants(kind: str, head: int, precision: str, indexed: bool) -> dict[str, Any]:
    found = {**_widths(head), "INDEXED": indexed, "UPCAST": False, "PRECISION": precision}
    if kind.startswith("keys"):
        found |= {"ATOMIC": kind == "keys-atomic", "stretches": 1}
    if kind == "tangent":
        found |= {"HAS_Q": True, "HAS_K": True, "HAS_V": True}
    return found


def _specimen(kind: str, dtype: torch.dtype, head: int, short: bool, tile: Tile, precision: str = "ieee") -> Specimen:
    kernel, element = KERNELS[kind], TYPES[dtype]
    signature = _signature(kind, kernel.arg_names, element)
    sizes = "-".join(str(size) for size in tile.sizes.values())
    words = [f"attention-{kind}", element, *(["windows"] if short else []), *(["tf32"] if precision == "tf32" else [])]
    exact = dtype == torch.float32 and precision == "ieee"
    matrix = set() if exact else {"matrix"}
    return Specimen(
        name="/".join([*words, str(head), f"{sizes}-w{tile.warps}-s{tile.stages}"]),
        kernel=kernel,
        signature=signature,
        constants=_constants(kind, head, precision, short) | variant(kind, dtype, head, exact),
        tile=tile,
        aligned=tuple(name for name in signature if name not in UNALIGNED),
        needs=frozenset(matrix | ({"no-spill"} if kind in NO_SPILL else set())),
    )


def _rows(kind: str) -> Iterator[Specimen]:
    for head in (32, 64, 96, 128):
        for tile in candidates(kind, torch.float16, head, False):
            yield _specimen(kind, torch.float16, head, False, tile)
    for tile in candidates(kind, torch.bfloat16, 64, False):
        yield _specimen(kind, torch.bfloat16, 64, False, tile)
    # Windows are read through an order of rows, by the tiles for short sequences.
    for head in (64, 128):
        for tile in candidates(kind, torch.float16, head, True):
            yield _specimen(kind, torch.float16, head, True, tile)
    for head in (64, 128):
        for precision in ("ieee", "tf32"):
            for tile in candidates(kind, torch.float32, head, False, precision == "ieee"):
                yield _specimen(kind, torch.float32, head, False, tile, precision)


def _delta(dtype: torch.dtype, head: int) -> Specimen:
    """The kernel of rowsum(out * grad), which all backward kernels read."""
    signature = _signature("delta", backward_jit.delta_kernel.arg_names, TYPES[dtype])
    return Specimen(
        name=f"attention-delta/{TYPES[dtype]}/{head}/{DELTA.name}",
        kernel=backward_jit.delta_kernel,
        signature=signature,
        constants=_widths(head),
        tile=DELTA,
        aligned=tuple(name for name in signature if name not in UNALIGNED),
        needs=frozenset({"no-spill"}),
    )


def _windows() -> list[Specimen]:
    """The kernels that sort voxels into windows, on int32 coordinates."""
    voxels = {"coords": "*i32", "index": "*i64", "window": "*i32"}
    order = {"window": "*i32", "order": "*i64", "inverse": "*i64", "order32": "*i32", "begins": "*i8"}
    return [
        of_indices("attention-windows/window", windows_jit.window_kernel, voxels, {"BLOCK": BLOCK}),
        of_indices("attention-windows/begins", windows_jit.begins_kernel, order, {"BLOCK": BLOCK}),
    ]


def specimens() -> list[Specimen]:
    """Every shipped tile: half precision at all head widths, windows, exact float32 and tf32."""
    deltas = [_delta(dtype, head) for dtype in TYPES for head in (64, 128)]
    return [*deltas, *_windows(), *(specimen for kind in KINDS for specimen in _rows(kind))]
