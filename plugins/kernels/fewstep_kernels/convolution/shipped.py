"""The convolution kernels that the ahead-of-time gate compiles: every tile of ``tiles.py``."""

from __future__ import annotations

from typing import Any

import torch

from fewstep_kernels.aot.specimen import Specimen, of_indices
from fewstep_kernels.cells import BLOCK
from fewstep_kernels.convolution import conv_jit, map_jit
from fewstep_kernels.convolution.plan import STRETCH
from fewstep_kernels.convolution.tiles import KINDS, candidates
from fewstep_kernels.tuning import Tile

KERNELS = {"convolve": conv_jit.conv_kernel, "outer": conv_jit.outer_kernel}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
VALUES = ("x", "w", "grad")
INT32 = ("order", "near", "offsets", "counts", "sources", "targets")
CHANNELS = (64, 128)  # one for each column of the tables


def _signature(kind: str, element: str) -> dict[str, str]:
    names = [name for name in KERNELS[kind].arg_names if not name.isupper()]
    given = {**dict.fromkeys(VALUES, f"*{element}"), **dict.fromkeys(INT32, "*i32")}
    given["out"] = f"*{element}" if kind == "convolve" else "*fp32"
    return {name: given.get(name, "i32") for name in names}


def _specimen(
    kind: str, dtype: torch.dtype, channels: int, tile: Tile, precision: str, along: str = "w_out"
) -> Specimen:
    """``along``: the stride of the weights that is 1; a launch specialises on it."""
    signature, constants = _signature(kind, TYPES[dtype]), {"UPCAST": False, "PRECISION": precision}
    if kind == "convolve":
        del signature[along]
        constants[along] = 1
    sizes = "-".join(str(size) for size in tile.sizes.values())
    words = [
        f"convolution-{kind}{'' if along == 'w_out' else '-kept'}",
        TYPES[dtype],
        *(["tf32"] if precision == "tf32" else []),
        str(channels),
    ]
    exact = dtype == torch.float32 and precision == "ieee"
    return Specimen(
        name="/".join([*words, f"{sizes}-w{tile.warps}-s{tile.stages}"]),
        kernel=KERNELS[kind],
        signature=signature,
        constants=constants,
        tile=tile,
        aligned=tuple(name for name in signature if name not in ("rows", "volume", "splits")),
        needs=frozenset({"no-spill"} | (set() if exact else {"matrix"})),
    )


def _map() -> list[Specimen]:
    """The kernels of the neighbour map, for 3^3 offsets and int32 coordinates."""
    voxels, table = {"coords": "*i32", "index": "*i64", "lookup": "*i32"}, {"table": "*i32"}
    found = {"near": "*i32", "offsets": "*i32", "counts": "*i32"}
    kernels: dict[str, tuple[Any, dict[str, str], dict[str, Any]]] = {
        "put": (map_jit.put_kernel, voxels, {"BLOCK": BLOCK, "size": 1}),
        "find": (map_jit.find_kernel, {**voxels, **table, "twice": "*i32"}, {"BLOCK": BLOCK, "size": 1, "EDGE": 3}),
        "code": (map_jit.code_kernel, {**table, "code": "*i32"}, {"BLOCK": BLOCK, "REACH": 13, "WIDE": False}),
        "tiles": (map_jit.tiles_kernel, {**table, "sorted_rows": "*i64", "order": "*i32", **found}, {"BLOCK_M": 128}),
        "pairs": (
            map_jit.pairs_kernel,
            {**table, "sources": "*i32", "targets": "*i32", "counts": "*i32"},
            {"BLOCK": STRETCH},
        ),
    }
    return [of_indices(f"convolution-map/{name}", *kernel) for name, kernel in kernels.items()]


def specimens() -> list[Specimen]:
    """Every shipped tile in half precision, exact float32 and tf32; and the kernels of the neighbour map."""
    cases: list[tuple[torch.dtype, str]] = [
        (torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"),
    ]  # fmt: skip
    found: dict[Any, Specimen] = {}
    for kind in KINDS:
        for dtype, precision in cases:
            for channels in CHANNELS:
                for tile in candidates(kind, dtype, channels, precision == "ieee"):
                    # A layer's weights have contiguous input channels; transposed for gradients, contiguous outputs.
                    for along in ("w_in", "w_out") if kind == "convolve" else ("w_out",):
                        one = _specimen(kind, dtype, channels, tile, precision, along)
                        found[one.name] = one
    return [*found.values(), *_map()]
