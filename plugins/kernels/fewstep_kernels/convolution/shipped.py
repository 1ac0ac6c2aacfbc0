"""What the ahead-of-time gate compiles of convolution: every tile of ``tiles.py``."""

from __future__ import annotations

from typing import Any

import torch

from fewstep_kernels.aot.specimen import Specimen
from fewstep_kernels.convolution import conv_jit
from fewstep_kernels.convolution.tiles import KINDS, candidates
from fewstep_kernels.tuning import Tile

KERNELS = {"convolve": conv_jit.conv_kernel, "outer": conv_jit.outer_kernel}
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
VALUES = ("x", "w", "grad")
INT32 = ("order", "near", "offsets", "counts", "sources", "targets")
CHANNELS = (64, 128)  # one on each side of the tables


def _signature(kind: str, element: str) -> dict[str, str]:
    names = [name for name in KERNELS[kind].arg_names if not name.isupper()]
    given = {**dict.fromkeys(VALUES, f"*{element}"), **dict.fromkeys(INT32, "*i32")}
    given["out"] = f"*{element}" if kind == "convolve" else "*fp32"
    return {name: given.get(name, "i32") for name in names}


def _specimen(kind: str, dtype: torch.dtype, channels: int, tile: Tile, precision: str) -> Specimen:
    signature, constants = _signature(kind, TYPES[dtype]), {"UPCAST": False, "PRECISION": precision}
    if kind == "convolve":
        del signature["w_out"]
        constants["w_out"] = 1  # a launch with contiguous matrices specialises on it
    sizes = "-".join(str(size) for size in tile.sizes.values())
    words = [f"convolution-{kind}", TYPES[dtype], *(["tf32"] if precision == "tf32" else []), str(channels)]
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


def specimens() -> list[Specimen]:
    """Every shipped tile in half precision, and float32 exact and as tf32."""
    cases: list[tuple[torch.dtype, str]] = [
        (torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"),
    ]  # fmt: skip
    found: dict[Any, Specimen] = {}
    for kind in KINDS:
        for dtype, precision in cases:
            for channels in CHANNELS:
                for tile in candidates(kind, dtype, channels, precision == "ieee"):
                    one = _specimen(kind, dtype, channels, tile, precision)
                    found[one.name] = one
    return list(found.values())
