"""Calls of every op for the comparison with the oracle: ragged, empty, single rows, sizes that no tile divides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.voxels import object_layout
from fewstep.core.layout import Packed

RAGGED, RAGGED_DRY = (0, 1, 17, 63, 64, 65, 300, 5000), (0, 1, 17, 33)
# Samples without keys, with one key, with more keys than queries, and with fewer.
KEYS, KEYS_DRY = (17, 300, 0, 64, 1, 63, 5000, 65), (17, 33, 0, 20)
WIDTHS, WIDTHS_DRY = (64, 32, 96, 128), (32,)


@dataclass(frozen=True)
class Trial:
    """A call of an op.

    Args:
        shape: in words.
        args: as the op table's kernels take them.
        wrt: places of the arguments that are differentiated.
    """

    shape: str
    args: tuple[Any, ...]
    wrt: tuple[int, ...]


Make = Callable[[Bench, torch.dtype], Iterator[Trial]]


def _packed(bench: Bench, lengths: Sequence[int]) -> Packed:
    return Packed.of_lengths(list(lengths), device=bench.device)


def _heads(bench: Bench, rows: int, heads: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as slices of one fused projection, as in a transformer block."""
    fused = bench.randn(rows, 3, heads, width, dtype=dtype)
    q, k, v = fused.unbind(1)
    return q, k, v


def varlen(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    """Self and cross attention on the same ragged batch, and samples of equal lengths, which torch serves."""
    lengths = bench.sizes(RAGGED, RAGGED_DRY)
    layout, others = _packed(bench, lengths), _packed(bench, bench.sizes(KEYS, KEYS_DRY))
    for width in bench.sizes(WIDTHS, WIDTHS_DRY):
        heads = bench.sizes(2, 1)
        q, k, v = _heads(bench, layout.rows, heads, width, dtype)
        yield Trial(
            f"self {len(lengths)} lengths to {max(lengths)}, {heads} x {width}", (q, k, v, layout, layout), (0, 1, 2)
        )
    _, k, v = _heads(bench, others.rows, q.shape[1], q.shape[2], dtype)
    yield Trial(f"cross, keys {max(others.lengths_list)} to 0, {heads} x {width}", (q, k, v, layout, others), (0, 1, 2))
    equal = _packed(bench, bench.sizes((1025, 1025), (33, 33)))
    q, k, v = _heads(bench, equal.rows, heads, width, dtype)
    yield Trial(f"self, two of {equal.lengths_list[0]}, {heads} x {width}", (q, k, v, equal, equal), (0, 1, 2))


def dense(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    """Equal lengths that are not multiples of a tile."""
    for length, keys in bench.sizes(((1025, 1025), (333, 1374)), ((33, 33),)):
        width = bench.sizes(64, 32)
        q, k, v = (bench.randn(2, n, 2, width, dtype=dtype) for n in (length, keys, keys))
        yield Trial(f"2 x {length} to {keys}, 2 x {width}", (q, k, v), (0, 1, 2))


def windowed(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    """Two objects, with windows of 8, shifted and not."""
    layout = object_layout(bench, bench.sizes((3000, 1237), (20, 13)), bench.sizes(64, 8))
    for shift in (0, 4):
        q, k, v = _heads(bench, layout.rows, bench.sizes(3, 1), bench.sizes(64, 32), dtype)
        yield Trial(f"{layout.rows} voxels, 8^3 shifted by {shift}", (q, k, v, layout, 8, shift), (0, 1, 2))


def convolution(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    """The channels of the flow's ends and of the mesh decoder, and some that are not multiples of a tile."""
    layout = object_layout(bench, bench.sizes((3000, 1237), (20, 13)))
    for inner, outer in bench.sizes(((128, 128), (96, 192), (33, 17)), ((16, 17),)):
        x = bench.randn(layout.rows, inner, dtype=dtype)
        weight = (bench.randn(outer, 3, 3, 3, inner) * (27 * inner) ** -0.5).to(dtype)
        yield Trial(f"{layout.rows} voxels, {inner} to {outer}", (x, weight, layout), (0, 1))


def qk_norm(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    """With rotary embedding and without; gains in float32, as the models keep them."""
    for width in bench.sizes((64, 96), (32,)):
        rows, heads = bench.sizes((1001, 3), (9, 2))
        q, k, _ = _heads(bench, rows, heads, width, dtype)
        gains = [1 + 0.1 * bench.randn(heads, width) for _ in range(2)]
        angle = bench.randn(rows, width // 2)
        for rotary in (None, (angle.cos(), angle.sin())):
            words = "rotary" if rotary else "plain"
            yield Trial(f"{rows} rows, {heads} x {width}, {words}", (q, k, *gains, rotary), (0, 1, 2, 3))


def _rows(bench: Bench) -> Iterator[tuple[str, Packed | None, tuple[int, ...], tuple[int, int]]]:
    """Packed and dense shapes of [rows, channels] with per-sample vectors."""
    for width in bench.sizes((1024, 768, 100), (40,)):
        lengths = bench.sizes(RAGGED[:-1], RAGGED_DRY)
        layout = _packed(bench, lengths)
        yield f"packed {layout.rows} x {width}", layout, (layout.rows, width), (len(lengths), width)
        yield f"dense 2 x 33 x {width}", None, (2, 33, width), (2, width)


def modulated(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    for words, layout, shape, each in _rows(bench):
        x, shift, scale = (bench.randn(*s, dtype=dtype) for s in (shape, each, each))
        yield Trial(words, (x, shift, scale, layout, 1e-6), (0, 1, 2))


def gated(bench: Bench, dtype: torch.dtype) -> Iterator[Trial]:
    for words, layout, shape, each in _rows(bench):
        x, gate, y = (bench.randn(*s, dtype=dtype) for s in (shape, each, shape))
        yield Trial(words, (x, gate, y, layout), (0, 1, 2))


TRIALS: dict[str, Make] = {
    "varlen_attention": varlen,
    "attention": dense,
    "windowed_attention": windowed,
    "submanifold_conv": convolution,
    "qk_rms_norm": qk_norm,
    "modulated_norm": modulated,
    "gated_residual": gated,
}
